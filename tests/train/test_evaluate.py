"""Bits per byte, infills from documents, and greedy answers."""

import random
from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tapwater.errors import ConfigError
from tapwater.model import Sequences, Transformer
from tapwater.train import greedy
from tapwater.train.evaluate import (
    Infill,
    Marks,
    Problem,
    bits_per_byte,
    evaluation,
    exact_share,
    infill_problems,
    make_infill,
    original_text,
)
from tiny import CONFIGS, prompt, tiny_model, uncached_greedy

MARKS = Marks(bos=0, eos=1, begin=2, hole=3, end=4)
CODE = "def area(r):\n    pi = 3.14\n    x\n    return pi * r * r\n"


def encode(text: str) -> list[int]:
    return [5 + byte for byte in text.encode()]


def decode(ids: list[int]) -> str:
    return bytes(each - 5 for each in ids).decode()


def test_bits_per_byte_of_a_uniform_guess_over_bytes_is_eight() -> None:
    assert bits_per_byte(100 * log(256), 100) == pytest.approx(8.0)
    with pytest.raises(ValueError, match="0 bytes"):
        bits_per_byte(1.0, 0)


def test_sources_are_weighed_by_bytes() -> None:
    found = evaluation(7, 4096, {"web": (300 * log(2), 100), "code": (100 * log(2), 300)}, 0.5)
    assert (found.sources["web"], found.bits_per_byte, found.fim_exact) == (pytest.approx(3.0), pytest.approx(1.0), 0.5)


@given(st.text(alphabet="ab é \n", max_size=60), st.integers(0, 2**32))
def test_an_infill_put_together_is_the_text(text: str, seed: int) -> None:
    found = make_infill(text, random.Random(seed))
    if found is not None:
        assert found.prefix + found.middle + found.suffix == text
        assert found.middle.strip() and found.suffix
        assert "\n" not in found.middle


def test_a_whole_inner_line_is_taken_where_there_is_one() -> None:
    found = {make_infill(CODE, random.Random(seed)) for seed in range(40)}
    assert found == {
        Infill("def area(r):\n", "    pi = 3.14", "\n    x\n    return pi * r * r\n"),
        Infill("def area(r):\n    pi = 3.14\n    x\n", "    return pi * r * r", "\n"),
    }


def test_of_one_line_a_few_inner_words_are_taken() -> None:
    for seed in range(40):
        found = make_infill("one two three four five six", random.Random(seed))
        assert found is not None and 1 <= len(found.middle.split()) <= 4
        assert found.prefix.startswith("one") and found.middle.startswith(" ") and found.suffix.endswith(" six")
    assert make_infill("two words", random.Random(0)) is None
    assert make_infill("", random.Random(0)) is None


def test_a_rearranged_document_reads_as_it_was() -> None:
    plain = [0, *encode(CODE), 1]
    rearranged = [0, 2, *encode(CODE[:9]), 3, *encode(CODE[20:]), 4, *encode(CODE[9:20]), 1]
    suffix_first = [0, 2, 3, *encode(CODE[20:]), 4, *encode(CODE[:20]), 1]
    for each in (plain, rearranged, suffix_first):
        assert original_text(each, decode, MARKS) == CODE


def test_problems_fit_and_hide_the_middle() -> None:
    texts = [CODE, "two words", "first\n" + "long line " * 20 + "\nlast", "a" * 300 + "\nmiddle\n" + "b" * 300]
    problems = infill_problems(texts, 3, encode, MARKS, max_tokens=32, sequence_length=128)
    assert [each.middle.strip() for each in problems] in (["pi = 3.14", "middle"], ["return pi * r * r", "middle"])
    whole, cut = (each.prompt for each in problems)
    hole, end = whole.index(3), whole.index(4)
    assert decode(whole[2:hole]) + problems[0].middle + decode(whole[hole + 1 : end]) == CODE
    for each in problems:
        hole = each.prompt.index(3)
        assert each.prompt_spm == [0, 2, 3, *each.prompt[hole + 1 :], *each.prompt[2:hole]]
    assert len(cut) == 128 - 32 and cut[:2] == [0, 2] and cut[-1] == 4
    hole = cut.index(3)
    assert decode(cut[2:hole]).endswith("a\n") and decode(cut[hole + 1 : -1]).startswith("\nb")
    assert infill_problems(texts, 3, encode, MARKS, 32, 128) == problems
    assert not infill_problems([CODE], 3, lambda text: [3, *encode(text)], MARKS, 32, 128)  # its text has a mark
    with pytest.raises(ConfigError, match="no room for a prompt"):
        infill_problems(texts, 3, encode, MARKS, 32, 37)


def test_white_space_around_an_answer_does_not_count() -> None:
    problems = [Problem([], [], "  x = 1"), Problem([], [], "y"), Problem([], [], "z")]
    answers = [encode("x = 1 \n"), encode("y y"), encode("")]
    assert exact_share(problems, answers, decode) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="no problems"):
        exact_share([], [], decode)


@pytest.mark.parametrize("name", ["v2", "v2-lite-yarn", "llama-gqa"])
def test_answers_are_those_of_computing_everything_anew(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts of different lengths, more than go at a time, some ended by EOS."""
    monkeypatch.setattr(greedy, "BATCH", 3)
    prompts = [prompt(length, seed) for seed, length in enumerate((5, 17, 1, 9))]
    expected = [uncached_greedy(name, tuple(each), 8) for each in prompts]
    assert greedy.generate(tiny_model(name), prompts, 8, eos=-1) == expected
    eos = expected[0][3]
    cut = [each[: each.index(eos)] if eos in each else each for each in expected]
    assert cut != expected
    assert greedy.generate(tiny_model(name), prompts, 8, eos=eos) == cut


@pytest.mark.slow
def test_a_model_that_learned_one_document_fills_it_in() -> None:
    vocab = 96
    model = Transformer.random(CONFIGS["v2"], seed=1)
    alphabet = sorted(set(CODE))
    texts = [CODE]
    problems = infill_problems(
        texts, 3, lambda text: [5 + alphabet.index(each) for each in text], MARKS, max_tokens=32, sequence_length=128
    )
    (problem,) = problems
    row = torch.tensor([*problem.prompt, *(5 + alphabet.index(each) for each in problem.middle), MARKS.eos])
    assert int(row.max()) < vocab
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    rows = Sequences((len(row) - 1,))
    for _ in range(60):
        hidden = model(row[:-1], rows.positions(), rows).hidden_TD
        torch.nn.functional.cross_entropy(model.logits(hidden), row[1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    answers = greedy.generate(model, [problem.prompt], 32, MARKS.eos)
    assert exact_share(problems, answers, lambda ids: "".join(alphabet[each - 5] for each in ids)) == 1.0
