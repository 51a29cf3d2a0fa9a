"""Encoding: both libraries give the same ids, control strings in text stay text, draws are of the text alone."""

import json
import re
import shutil
from itertools import islice, pairwise, repeat
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapwater.data.encode import Encoder, ToEncode
from tapwater.data.fim import FimIds, arrange, is_chosen, part_lengths, parts_of, split_text
from tapwater.data.tokenizer_training import SPECIAL_TOKENS, train_tokenizer

TEXT = "class A:\n    def f(self, x):\n        return x + 10  # 加一\n" * 3


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer([TEXT + str(number) for number in range(50)], 280, path)
    return path


def test_the_fast_library_is_taken_and_agrees_with_the_other(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("fastokens")
    generator = np.random.default_rng(1)
    letters = list("aé你 \n\t1٣_-.#<｜>▁🙂\u0301") + list(SPECIAL_TOKENS)
    texts = ["".join(generator.choice(letters, 30)) for _ in range(300)] + ["", TEXT]
    asked = [ToEncode(text, number, 0.3) for number, text in enumerate(texts)]
    fast = Encoder.open(directory, texts)
    assert fast.backend.name == "fastokens"
    monkeypatch.setattr("tapwater.data.encode.find_spec", lambda name: None)
    slow = Encoder.open(directory, texts)
    assert slow.backend.name == "tokenizers"
    for (one, chosen), (other, also) in zip(fast.encode(asked, 0), slow.encode(asked, 0), strict=True):
        assert one.tolist() == other.tolist() and chosen == also


def test_control_strings_in_a_text_are_not_control_tokens(directory: Path) -> None:
    encoder = Encoder.open(directory, [])
    [(ids, _)] = encoder.encode([ToEncode("".join(SPECIAL_TOKENS), 0, 0.0)], 0)
    assert (ids[0], ids[-1]) == (0, 1) and ids[1:-1].min() >= len(SPECIAL_TOKENS)


def test_control_tokens_that_are_not_marked_special_stay_out_of_texts(directory: Path, tmp_path: Path) -> None:
    """As in DeepSeek's own files, where the tokens of infilling and of turns are ordinary added ones."""
    shutil.copytree(directory, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer.json"
    fields = json.loads(path.read_text(encoding="utf-8"))
    for token in fields["added_tokens"]:
        token["special"] = token["content"] in SPECIAL_TOKENS[:2]
    path.write_text(json.dumps(fields), encoding="utf-8")
    config = tmp_path / "tokenizer_config.json"
    template = {"chat_template": "{{ '<｜▁pad▁｜>' }}"}
    config.write_text(json.dumps(json.loads(config.read_text(encoding="utf-8")) | template), encoding="utf-8")
    encoder = Encoder.open(tmp_path, [])
    [(ids, _)] = encoder.encode([ToEncode("".join(SPECIAL_TOKENS), 0, 0.0)], 0)
    assert ids[1:-1].min() >= len(SPECIAL_TOKENS)
    assert encoder.fim is not None


def test_a_text_is_split_into_all_of_itself_and_the_share_is_kept() -> None:
    assert all("".join(split_text("héllo 世界", key, 0)) == "héllo 世界" for key in range(50))
    assert split_text("", 1, 0) == ("", "", "")
    assert len({split_text("abcdef", key, 0) for key in range(200)}) > 20  # of 28
    chosen = sum(is_chosen(key, 0.1, 0) for key in range(5000))
    assert 430 < chosen < 570
    assert [is_chosen(key, rate, 0) for key in range(5) for rate in (0.0, 1.0)] == [False, True] * 5


def test_short_middles_are_lines_or_words_of_one() -> None:
    lines = [
        "class A:",
        "",
        "    def f(self, x):",
        "        return x + 10  # 加一",
        "    # two",
        "    b = 3  ",
        "c = 4",
        "",
    ]
    text = "\n".join(lines)
    found = [split_text(text, key, 0, short_share=1.0) for key in range(3000)]
    assert all("".join(parts) == text for parts in found)
    middles = {middle for _, middle, _ in found}

    written = [index for index, line in enumerate(lines) if line]
    runs = [(at, at + count) for at in range(6) for count in (1, 2, 4)]
    of_lines = ["\n".join(lines[written[at] : written[min(stop, 6) - 1] + 1]).rstrip() for at, stop in runs]
    expected = {*of_lines, *(each.lstrip() for each in of_lines)}
    assert expected <= middles
    assert all("\n" not in each and any(each in line for line in lines) for each in middles - expected)
    assert {" x", "x + 10", "# 加一"} <= middles - expected
    for prefix, middle, suffix in found:  # no word is cut, and none is empty or ends in white space
        assert middle.strip() and middle == middle.rstrip()
        assert not re.search(r"\w\Z", prefix) or not re.match(r"\w", middle)
        assert not re.search(r"\w\Z", middle) or not re.match(r"\w", suffix)


def test_short_middles_are_a_share_and_blank_texts_are_cut_anywhere() -> None:
    text = "one two three\n" * 40
    assert split_text(text, 7, 0) == split_text(text, 7, 0, 0.0)
    short = sum(split_text(text, key, 0, 0.3) != split_text(text, key, 0) for key in range(2000))
    assert 540 < short < 660
    assert "".join(split_text(" \n\n ", 3, 0, 1.0)) == " \n\n "
    assert split_text("", 3, 0, 1.0) == ("", "", "")


@given(text=st.text(alphabet="ab\n", max_size=200), most=st.integers(1, 30))
def test_parts_are_whole_lines_and_all_of_the_text(text: str, most: int) -> None:
    parts = parts_of(text, repeat(most))
    assert "".join(parts) == text
    assert all(part.endswith("\n") for part in parts[:-1])
    assert all(len(part) <= most or part.count("\n") <= 1 for part in parts)
    assert all(len(first) + len(after.partition("\n")[0]) + 1 > most for first, after in pairwise(parts))


def test_lengths_of_parts_are_drawn_evenly_by_their_logarithm() -> None:
    lengths = list(islice(part_lengths(5, 80, 1280, 0), 4000))
    assert (
        lengths == list(islice(part_lengths(5, 80, 1280, 0), 4000)) != list(islice(part_lengths(6, 80, 1280, 0), 4000))
    )
    counts = [sum(low <= each < 2 * low for each in lengths) for low in (80, 160, 320, 640)]
    assert sum(counts) >= 3999 and min(counts) > 880 and max(counts) < 1120  # a few are rounded up to 1,280
    assert list(islice(part_lengths(5, 80, 80, 0), 3)) == [80, 80, 80]
    assert parts_of("a\nb\nc\nd\n", iter([4, 2, 2])) == ["a\nb\n", "c\n", "d\n"]


def test_the_suffix_comes_before_the_prefix_as_if_the_answer_began_with_it() -> None:
    prefix, middle, suffix = (np.array(each) for each in ([11, 12], [21], [31, 32, 33]))
    marks = FimIds(2, 3, 4)
    assert arrange(prefix, middle, suffix, marks).tolist() == [2, 11, 12, 3, 31, 32, 33, 4, 21]
    found = arrange(prefix, middle, suffix, marks, "spm").tolist()
    assert found == [2, 3, 31, 32, 33, 4, 11, 12, 21]
    assert found == arrange(prefix[:0], np.concatenate((prefix, middle)), suffix, marks).tolist()
