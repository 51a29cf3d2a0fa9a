"""Held-out text into numbers: bits per byte, and infills that a model gets exactly right."""

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log

from tapwater.errors import ConfigError
from tapwater.train.metrics import Evaluation

Encode = Callable[[str], Sequence[int]]  # ordinary text: no BOS, no control tokens
Decode = Callable[[Sequence[int]], str]

SHORTEST_LINE = 4  # characters: "}" is no test
MOST_WORDS = 4  # of a span, where a text has no line to take out


@dataclass(frozen=True)
class Marks:
    """Token ids around the parts of a rearranged document; their orders: `tapwater.data.fim`."""

    bos: int
    eos: int
    begin: int
    hole: int
    end: int

    def are_in(self, tokens: Sequence[int]) -> bool:
        return not {self.bos, self.eos, self.begin, self.hole, self.end}.isdisjoint(tokens)


@dataclass(frozen=True)
class Infill:
    """A text with its middle taken out."""

    prefix: str
    middle: str
    suffix: str


@dataclass(frozen=True)
class Problem:
    """An infill as a model gets it, in either order, and the text that is right."""

    prompt: list[int]
    prompt_spm: list[int]  # the suffix first
    middle: str


def bits_per_byte(nll_sum_nats: float, num_bytes: int) -> float:
    """Negative log-likelihood of a text, a sum over its tokens with EOS, per byte of its UTF-8, in bits.

    It compares models whatever their tokenizers. Raises ValueError without bytes.
    """
    if num_bytes < 1:
        raise ValueError(f"bits per byte of {num_bytes} bytes")
    return nll_sum_nats / log(2) / num_bytes


def evaluation(
    step: int,
    tokens: int,
    sums: Mapping[str, tuple[float, int]],
    fim_exact: float | None = None,
    fim_exact_spm: float | None = None,
) -> Evaluation:
    """An Evaluation of `sums`: nats and bytes of each source; all of them together weigh by bytes."""
    nats, num_bytes = (sum(each[index] for each in sums.values()) for index in range(2))
    sources = {source: bits_per_byte(*each) for source, each in sums.items()}
    return Evaluation(step, tokens, bits_per_byte(nats, int(num_bytes)), sources, fim_exact, fim_exact_spm)


def original_text(tokens: Sequence[int], decode: Decode, marks: Marks) -> str:
    """The text of a document, put back in order if it was rearranged."""
    body = [int(token) for token in tokens if token not in (marks.bos, marks.eos)]
    if marks.begin not in body:
        return decode(body)
    hole, end = body.index(marks.hole), body.index(marks.end)
    return decode(body[1:hole]) + decode(body[end + 1 :]) + decode(body[hole + 1 : end])


def make_infill(text: str, chance: random.Random) -> Infill | None:
    """Take out a whole line between two others, or where there is none a few words of the longest line.

    None where there is neither.
    """
    lines = text.split("\n")
    fit = [index for index in range(1, len(lines) - 1) if len(lines[index].strip()) >= SHORTEST_LINE]
    if fit:
        index = chance.choice(fit)
        before, after = "\n".join(lines[:index]) + "\n", "\n" + "\n".join(lines[index + 1 :])
        return Infill(before, lines[index], after)
    longest = max(range(len(lines)), key=lambda index: len(lines[index]))
    words = lines[longest].split(" ")
    count = min(chance.randint(1, MOST_WORDS), len(words) - 2)
    if count < 1:
        return None
    start = chance.randint(1, len(words) - 1 - count)
    parts = words[:start], words[start : start + count], words[start + count :]
    before, middle, after = (" ".join(part) for part in parts)
    # the space before a word goes with it, as it does in tokens
    found = Infill("\n".join([*lines[:longest], before]), " " + middle, "\n".join([" " + after, *lines[longest + 1 :]]))
    return found if middle.strip() else None


def infill_problems(
    texts: Iterable[str], seed: int, encode: Encode, marks: Marks, max_tokens: int, sequence_length: int
) -> list[Problem]:
    """One problem of every text that has one: same texts and seed, same problems.

    A middle of more than `max_tokens` tokens makes no problem; answers need one token more, for EOS. Prompt and middle
    together fit into `sequence_length` tokens: of a longer text the parts next to the middle are shown, two thirds
    before it. Raises ConfigError when that leaves no room for a prompt.
    """
    room = sequence_length - max_tokens - 4  # BOS and three marks
    if room < 2:
        raise ConfigError(
            f"evaluation: fim_max_tokens {max_tokens} leaves no room for a prompt in {sequence_length} tokens "
            "(fim_context, or data.sequence_length)"
        )
    found: list[Problem] = []
    for number, text in enumerate(texts):
        infill = make_infill(text, random.Random(f"{seed} {number}"))
        if infill is None or len(encode(infill.middle)) > max_tokens:
            continue
        suffix = list(encode(infill.suffix))
        prefix = list(encode(infill.prefix))
        if marks.are_in(prefix) or marks.are_in(suffix):  # a text about them: to corpora they are words, here tokens
            continue
        kept_before = max(2 * room // 3, room - len(suffix))
        prefix = prefix[max(0, len(prefix) - kept_before) :]
        suffix = suffix[: room - len(prefix)]
        psm = [marks.bos, marks.begin, *prefix, marks.hole, *suffix, marks.end]
        spm = [marks.bos, marks.begin, marks.hole, *suffix, marks.end, *prefix]
        found.append(Problem(psm, spm, infill.middle))
    return found


def exact_share(problems: Sequence[Problem], answers: Sequence[Sequence[int]], decode: Decode) -> float:
    """The share of problems whose answer is the middle, white space around it aside. Raises ValueError for none."""
    if not problems:
        raise ValueError("there are no problems to be answered")
    right = (
        decode(answer).strip() == problem.middle.strip() for problem, answer in zip(problems, answers, strict=True)
    )
    return sum(right) / len(problems)
