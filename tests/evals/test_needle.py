"""Needles in haystacks, with a model that finds what is in its window and one that cannot count."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from tapwater.engine import FinishReason, SamplingParams
from tapwater.errors import ConfigError
from tapwater.evals.needle import NEEDLE, NeedleTest, run, says
from tapwater.llm import Completion, Usage

WORDS = ["rain", "over", "the", "hills", "and", "rivers", "slowly", "turns", "green\n"]
HAYSTACK = " ".join(random.Random(0).choices(WORDS, k=3000))


class Letters:
    """A token is a character."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    encode_words = encode_part = encode

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        return self.encode(f"<user>{messages[0]['content']}<assistant>")


@dataclass
class Reader:
    """Answers with the number in the last `window` characters of a prompt, if there is one."""

    window: int = 10**9
    max_context: int = 4096
    tokenizer: Letters = field(default_factory=Letters)
    prompts: list[str] = field(default_factory=list)

    def generate(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[Completion]:
        assert params.temperature == 0.0 and params.max_tokens == 16
        texts = ["".join(map(chr, prompt)) for prompt in prompts]
        self.prompts += texts
        found = [re.search(r"\d{5}", text[-self.window :]) for text in texts]
        answers = [f" {each.group()}." if each else " none" for each in found]
        return [Completion(answer, (), (), FinishReason.STOP, Usage(1, 1, 0)) for answer in answers]


def shares(llm: Reader, test: NeedleTest) -> dict[tuple[int, float], float]:
    return {(each.length, each.depth): each.share for each in run(llm, HAYSTACK, test, lambda done, total: None)}  # pyrefly: ignore


def test_a_model_that_sees_everything_finds_everything_and_one_that_does_not_finds_what_is_near() -> None:
    test = NeedleTest((512, 2048), (0.0, 0.5, 1.0), trials=3)
    assert set(shares(Reader(), test).values()) == {1.0}
    near = shares(Reader(window=600), test)
    assert near[512, 0.0] == 1.0 and near[2048, 0.0] == near[2048, 0.5] == 0.0 and near[2048, 1.0] == 1.0


@pytest.mark.parametrize("form", ["text", "chat"])
def test_prompts_have_their_length_and_the_needle_its_depth(form: str) -> None:
    llm = Reader()
    test = NeedleTest((1024,), (0.0, 0.25, 1.0), trials=2, form=form)  # pyrefly: ignore
    first = list(run(llm, HAYSTACK, test, lambda done, total: None))  # pyrefly: ignore
    keys = [trial.key for trial in first[0].trials]
    assert keys[0] != keys[1] and [trial.key for trial in first[2].trials] == keys
    for number, text in enumerate(llm.prompts):
        assert len(text) == 1024 - 16  # all but the answer
        place = text.index(NEEDLE.replace("{key}", keys[number % 2]))
        depth = (0.0, 0.25, 1.0)[number // 2]
        assert place / (len(text) - 120) == pytest.approx(depth, abs=0.08)
    again = Reader()
    list(run(again, HAYSTACK, test, lambda done, total: None))  # pyrefly: ignore
    assert again.prompts == llm.prompts


def test_a_short_haystack_is_repeated() -> None:
    llm = Reader()
    list(run(llm, "a river ", NeedleTest((1024,), (0.5,), trials=1), lambda done, total: None))  # pyrefly: ignore
    assert llm.prompts[0].count("river") > 90


def test_what_cannot_be_held_or_hidden_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"lengths 8192, 16384 are more than the 4096 tokens of the model's context"):
        shares(Reader(), NeedleTest((1024, 8192, 16384), (0.5,)))
    reader = Reader()
    with pytest.raises(ConfigError, match="no room in a length of 64"):
        shares(reader, NeedleTest((1024, 64), (0.5,)))
    assert not reader.prompts  # before anything is asked
    for needle in ("The key is gone.", "The key is 7{key}."):
        with pytest.raises(ConfigError, match=r"must have \{key\}"):
            NeedleTest((64,), (0.5,), needle=needle)
    for question in (" ", "Is it {key}?"):
        with pytest.raises(ConfigError, match=r"words without \{key\}"):
            NeedleTest((64,), (0.5,), question=question)
    with pytest.raises(ConfigError, match="depths has a number twice"):
        NeedleTest((64,), (0.5, 0.5))
    with pytest.raises(ConfigError, match="at least 1 token, got -5"):
        NeedleTest((-5,), (0.5,))
    with pytest.raises(ConfigError, match="max_tokens 6 are fewer than the 7"):
        shares(Reader(), NeedleTest((512,), (0.5,), max_tokens=6))
    with pytest.raises(ConfigError, match=r"depth is between 0 and 1, got 1\.5"):
        NeedleTest((64,), (1.5,))


def test_only_the_whole_number_counts() -> None:
    assert says(" 48213. Remember", "48213") and says("It is 48213", "48213")
    assert not says("482130", "48213") and not says("4821", "48213") and not says("I cannot tell", "48213")
    assert not says("1 or 48213", "48213")
