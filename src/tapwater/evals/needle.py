"""A needle in a haystack: one sentence hidden in a long text, at every depth, and asked for at the end."""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, Protocol

from tapwater.engine import SamplingParams
from tapwater.errors import ConfigError
from tapwater.llm import Completion
from tapwater.text import Tokenizer

Form = Literal["text", "chat"]
KEY = "{key}"
NEEDLE = "The pass key is {key}. Remember it: {key} is the pass key."
QUESTIONS: dict[Form, str] = {
    "text": "What is the pass key? The pass key is",
    "chat": "What is the pass key in the text above? Answer with the number alone.",
}
DIGITS = 5
LONGEST_WORD = 40  # characters; a text without spaces is cut where it is
TRIES = 12  # to find how much text fills a prompt
CHARS_PER_TOKEN = (16, 256, 4096)  # at most; runs of spaces, say, are many to a token
FILLED = 0.9  # of a prompt, at least


class Model(Protocol):
    """What is asked of tapwater.llm.LLM."""

    tokenizer: Tokenizer

    @property
    def max_context(self) -> int: ...

    def generate(self, prompts: Sequence[Sequence[int]], params: SamplingParams) -> list[Completion]: ...


@dataclass(frozen=True)
class NeedleTest:
    """What is hidden, asked and counted. `needle` has {key} where the digits go; the same seed gives the same prompts.

    A length is that of a prompt with its answer, in tokens; depth 0 is the beginning of the haystack, 1 its end. `text`
    puts the question after the haystack as it stands; `chat` makes both one message of the model's own template.
    """

    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    trials: int = 5
    seed: int = 0
    needle: str = NEEDLE
    question: str | None = None  # None: that of the form
    form: Form = "text"
    max_tokens: int = 16  # of the answer

    def __post_init__(self) -> None:
        if not self.lengths or not self.depths or self.trials < 1 or self.max_tokens < 1:
            raise ConfigError("needle: there must be lengths, depths, and at least one trial and token of an answer")
        for depth in self.depths:
            if not 0 <= depth <= 1:
                raise ConfigError(f"needle: a depth is between 0 and 1, got {depth}")
        for name, values in (("lengths", self.lengths), ("depths", self.depths)):
            if len(set(values)) < len(values):
                raise ConfigError(f"needle: {name} has a number twice: {', '.join(map(str, values))}")
        if min(self.lengths) < 1:
            raise ConfigError(f"needle: a length is at least 1 token, got {min(self.lengths)}")
        if not re.search(rf"(?<!\d){re.escape(KEY)}(?!\d)", self.needle):
            raise ConfigError(
                f"needle: the needle must have {KEY} where the digits go, and no digit beside it, got {self.needle!r}"
            )
        if self.question is not None and (KEY in self.question or not self.question.strip()):
            raise ConfigError(f"needle: the question must be words without {KEY}, got {self.question!r}")


@dataclass(frozen=True)
class Trial:
    """One prompt: what was hidden, what was answered, and how long the prompt was."""

    key: str
    answer: str
    prompt_tokens: int

    @property
    def is_exact(self) -> bool:
        return says(self.answer, self.key)


@dataclass(frozen=True)
class Cell:
    length: int
    depth: float
    trials: tuple[Trial, ...]

    @property
    def num_exact(self) -> int:
        return sum(each.is_exact for each in self.trials)

    @property
    def share(self) -> float:
        """Of the trials that were answered exactly."""
        return self.num_exact / len(self.trials)


def says(answer: str, key: str) -> bool:
    """Whether the first number of an answer is the key, to the digit."""
    found = re.search(r"\d+", answer)
    return found is not None and found.group() == key


def check_lengths(test: NeedleTest, max_context: int) -> None:
    """ConfigError naming the lengths that the model cannot hold."""
    over = [length for length in test.lengths if length > max_context]
    if over:
        raise ConfigError(
            f"needle: lengths {', '.join(map(str, over))} are more than the {max_context} tokens of the model's "
            "context; leave them out, or raise engine.cache_tokens where the model itself could hold more"
        )


def run(llm: Model, haystack: str, test: NeedleTest, progress: Callable[[int, int], None]) -> Iterator[Cell]:
    """Every cell of the grid as it is found, lengths outside, depths inside; greedy answers. `progress` counts cells.

    A haystack shorter than a prompt is repeated. Raises ConfigError for a length that the model cannot hold, or that
    has no room for the needle and the question, and for an answer too short for a number.
    """
    check_lengths(test, llm.max_context)
    if not haystack.strip():
        raise ConfigError("needle: the haystack has no text")
    keys = [_drawn(test, length, trial)[0] for length in test.lengths for trial in range(test.trials)]
    needed = max(len(llm.tokenizer.encode_part(f" {key}")) for key in keys) + 1  # and what shows that it ends there
    if test.max_tokens < needed:
        raise ConfigError(f"needle: max_tokens {test.max_tokens} are fewer than the {needed} a number can take")
    for length in test.lengths:
        _check_room(llm.tokenizer, test, length)
    total = len(test.lengths) * len(test.depths)
    params = SamplingParams(max_tokens=test.max_tokens, temperature=0.0)
    for number, (length, depth) in enumerate(product(test.lengths, test.depths)):
        progress(number, total)
        yield _cell(llm, haystack, test, length, depth, params)
    progress(total, total)


def _cell(llm: Model, haystack: str, test: NeedleTest, length: int, depth: float, params: SamplingParams) -> Cell:
    keys: list[str] = []
    prompts: list[list[int]] = []
    for trial in range(test.trials):
        key, place = _drawn(test, length, trial)
        start = int(place * len(haystack))
        keys.append(key)
        prompts.append(prompt(llm.tokenizer, haystack, start, test, key, length - test.max_tokens, depth))
    answers = llm.generate(prompts, params)
    found = zip(keys, answers, prompts, strict=True)
    return Cell(length, depth, tuple(Trial(key, answer.text, len(tokens)) for key, answer, tokens in found))


def _drawn(test: NeedleTest, length: int, trial: int) -> tuple[str, float]:
    """The number, and where in the haystack a prompt begins: the depths of a row differ in nothing but the depth."""
    chance = random.Random(f"{test.seed} {length} {trial}")
    return str(chance.randrange(10 ** (DIGITS - 1), 10**DIGITS)), chance.random()


def prompt(
    tokenizer: Tokenizer, haystack: str, start: int, test: NeedleTest, key: str, num_tokens: int, depth: float
) -> list[int]:
    """At most `num_tokens` tokens, and as few less as whole words allow: haystack from a place on, needle, question.

    ConfigError for a haystack of so few tokens to a character that it does not fill them.
    """
    for chars in CHARS_PER_TOKEN:
        found = _filled(tokenizer, haystack, start, test, key, num_tokens, depth, chars * num_tokens)
        if len(found) >= FILLED * num_tokens:
            return found
    raise ConfigError(f"needle: the haystack has too few tokens to its characters to fill a prompt of {num_tokens}")


def _filled(
    tokenizer: Tokenizer,
    haystack: str,
    start: int,
    test: NeedleTest,
    key: str,
    num_tokens: int,
    depth: float,
    high: int,
) -> list[int]:
    """The longest prompt found with less than `high` characters of haystack."""
    empty = _encoded(tokenizer, test, key, "", depth)
    # characters that fit (low) and do not (high), closed in on by the rate of tokens to characters between them
    low, best = 0, empty
    guess = 3 * (num_tokens - len(empty))
    for _ in range(TRIES):
        found = _encoded(tokenizer, test, key, _cut(haystack, start, guess), depth)
        if len(found) <= num_tokens:
            low, best = guess, found
        else:
            high = guess
        rate = (len(found) - len(empty)) / guess if guess else 0.0
        aim = int((num_tokens - len(empty)) / rate) if rate > 0 else high
        guess = aim if low < aim < high else (low + high) // 2
        if len(best) == num_tokens or high - low <= 1:
            break
    return best


def _encoded(tokenizer: Tokenizer, test: NeedleTest, key: str, text: str, depth: float) -> list[int]:
    question = QUESTIONS[test.form] if test.question is None else test.question
    whole = f"{_hidden(text, test.needle.replace(KEY, key), depth)}\n\n{question}"
    if test.form == "chat":
        return tokenizer.encode_chat([{"role": "user", "content": whole}])
    return tokenizer.encode_words(whole)


def _check_room(tokenizer: Tokenizer, test: NeedleTest, length: int) -> None:
    """ConfigError for a length that needle, question and answer alone exceed."""
    for trial in range(test.trials):
        needed = len(_encoded(tokenizer, test, _drawn(test, length, trial)[0], "", 0.0)) + test.max_tokens
        if needed > length:
            raise ConfigError(
                f"needle: needle, question and answer take {needed} tokens: there is no room in a length of {length}"
            )


def _cut(haystack: str, start: int, num_chars: int) -> str:
    """Text from a place on; after its end, its beginning."""
    pieces: list[str] = []
    left = num_chars
    while left > 0:
        pieces.append(haystack[start : start + left])
        left -= len(pieces[-1])
        start = 0
    return "".join(pieces)


def _hidden(text: str, needle: str, depth: float) -> str:
    """The needle as a line of its own, at `depth` of the text or after the word that goes on there."""
    place = round(depth * len(text))
    if 0 < place < len(text):
        space = re.compile(r"\s").search(text, place, place + LONGEST_WORD)
        place = space.end() if space else place
    parts = (text[:place].rstrip("\n"), needle, text[place:])
    return "\n".join(part for part in parts if part)
