"""Oracle: `tokenizers`' decode of the whole sequence."""

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from tapwater.text import IncrementalDetokenizer, Tokenizer

TEXTS = [
    "hello world",
    "  leading and trailing  ",
    "今天天气很好",
    "👩‍👩‍👧 family 🚰",
    "a\n\n\tb",
    "é́ naïve",
    "\ufffd real",
    "",
]


def stream(tokenizer: Tokenizer, token_ids: list[int]) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer)
    return [*(detokenizer.push(token_id) for token_id in token_ids), detokenizer.flush()]


@given(data=st.data())
def test_random_ids_join_to_the_whole_decode(
    data: st.DataObject, tokenizer: Tokenizer, byte_level_backend: tokenizers.Tokenizer
) -> None:
    # Mostly single bytes (ids below 300), so that broken and unfinished characters are common; some past the end.
    token_id = st.integers(0, 300) | st.integers(0, tokenizer.vocab_size + 20)
    ids = data.draw(st.lists(token_id, max_size=40))
    expected = byte_level_backend.decode(ids, skip_special_tokens=True)
    assert tokenizer.decode(ids) == expected
    assert "".join(stream(tokenizer, ids)) == expected


@given(text=st.text(max_size=30))
def test_any_text_survives(
    text: str, tokenizer: Tokenizer, sentencepiece_tokenizer: Tokenizer, sentencepiece_backend: tokenizers.Tokenizer
) -> None:
    ids = tokenizer.encode(text)
    if not any(control in text for control in ("<|", "    ")):
        assert tokenizer.decode(ids) == text
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)

    ids = sentencepiece_tokenizer.encode(text)
    expected = sentencepiece_backend.decode(ids, skip_special_tokens=True)
    assert sentencepiece_tokenizer.decode(ids) == expected
    assert "".join(stream(sentencepiece_tokenizer, ids)) == expected


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_hold_whole_characters_as_soon_as_they_are_whole(text: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text)
    detokenizer = IncrementalDetokenizer(tokenizer)
    shown = ""
    for n, token_id in enumerate(ids, start=1):
        shown += detokenizer.push(token_id)
        so_far = b"".join(tokenizer.token_bytes(i) for i in ids[:n])
        assert shown == so_far.decode("utf-8", errors="ignore")
    assert detokenizer.flush() == ""


def test_unfinished_character_waits_and_ends_as_replacement(tokenizer: Tokenizer) -> None:
    ids = [byte_token(tokenizer, byte) for byte in "A好".encode()[:-1]]
    assert stream(tokenizer, ids) == ["A", "", "", "\ufffd"]


def test_special_tokens_are_skipped_even_inside_a_character(tokenizer: Tokenizer) -> None:
    first, *rest = (byte_token(tokenizer, byte) for byte in "好".encode())
    assert stream(tokenizer, [0, first, 2, *rest, 1]) == ["", "", "", "", "好", "", ""]


def test_sentencepiece_space_is_stripped_once(sentencepiece_tokenizer: Tokenizer) -> None:
    ids = sentencepiece_tokenizer.encode(" the the")
    assert "".join(stream(sentencepiece_tokenizer, ids)) == " the the"
    assert "".join(stream(sentencepiece_tokenizer, ids[1:])) == " the the"  # without BOS, which is skipped anyhow


def byte_token(tokenizer: Tokenizer, byte: int) -> int:
    return next(i for i in range(tokenizer.vocab_size) if tokenizer.token_bytes(i) == bytes([byte]))
