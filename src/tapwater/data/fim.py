"""Fill-in-the-middle: documents rearranged so that a model learns to write what is missing inside.

Whole documents, before packing, in the order prefix, suffix, middle, cut between any two characters (DeepSeek-Coder,
arXiv 2401.14196, section 3.1.2):

    BOS <fim_begin> prefix <fim_hole> suffix <fim_end> middle EOS

To write a middle, the model must find back to where the prefix ended, and small models learn that late. With the suffix
first the middle goes on where the prefix ends (SPM; Bavarian et al., arXiv 2207.14255, section 3 and appendix D). It is
the same order with nothing before the hole and the prefix as the beginning of the answer:

    BOS <fim_begin> <fim_hole> suffix <fim_end> prefix middle EOS

Prompts of both are made by `Tokenizer.encode_infill`.

A document that is much longer than a row of training falls apart there, and few rows see its middle with what is around
it: `fim.part_chars` cuts such documents into parts first (context-level infilling: Bavarian et al., section 3), all as
long or of drawn lengths: in short ones the way back to the hole is short. Middles between any two characters are a
third of a text and begin and end within words; an editor asks for a line or some words, and `fim.short_share` of the
rearranged documents are cut as it asks.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tapwater.data.permutation import hashed

Ids = NDArray[np.integer]
Order = Literal["psm", "spm"]

# Draws of one document that are independent of each other, and of those of build.py, which are 1 and 2.
_CUTS, _SHORT, _ORDER, _LENGTHS, _CHOSEN = 12, 13, 14, 15, 16
_LINE = re.compile(r"^.*\S", re.MULTILINE)  # of a line that is not blank, without white space at its end
_WORD = re.compile(r"\s*(?:\w+|[^\w\s]+)")  # and the space before it, which is in its token


@dataclass(frozen=True)
class FimIds:
    """Token ids of the three marks."""

    begin: int
    hole: int
    end: int


def is_chosen(key: int, rate: float, seed: int) -> bool:
    """Whether the document of `key` is among the share `rate` that is rearranged."""
    return hashed(seed, _CHOSEN, key) < rate * 2**64


def order_of(key: int, spm_share: float, seed: int) -> Order:
    """The order of the rearranged document of `key`: of the share `spm_share` the suffix comes before the prefix."""
    return "spm" if hashed(seed, _ORDER, key) < spm_share * 2**64 else "psm"


def split_text(text: str, key: int, seed: int, short_share: float = 0.0) -> tuple[str, str, str]:
    """Prefix, middle and suffix by two cuts drawn for the document of `key`; any of the parts may be empty.

    Cuts are anywhere, but of the share `short_share` of documents around one line, two or four (half of these around
    one), with the space before the first of them or without, or around some words of one line. Blank texts are cut
    anywhere.
    """
    if hashed(seed, _SHORT, key) < short_share * 2**64 and (lines := list(_LINE.finditer(text))):
        start, stop = _short_cuts(text, lines, key, seed)
    else:
        start, stop = sorted(hashed(seed, _CUTS, key, place) % (len(text) + 1) for place in range(2))
    return text[:start], text[start:stop], text[stop:]


def _short_cuts(text: str, lines: list[re.Match[str]], key: int, seed: int) -> tuple[int, int]:
    draws = (hashed(seed, _SHORT, key, place) for place in count())
    number = next(draws) % len(lines)
    line = lines[number]
    keep_space = next(draws) % 2
    if next(draws) % 3:
        start = line.start() if keep_space else _after_space(text, line.start())
        last = min(number + (1, 1, 2, 4)[next(draws) % 4], len(lines)) - 1
        return start, lines[last].end()
    words = list(_WORD.finditer(text, line.start(), line.end()))
    first = next(draws) % len(words)
    last = first + next(draws) % (len(words) - first)
    start = words[first].start() if keep_space else _after_space(text, words[first].start())
    return start, words[last].end()


def _after_space(text: str, place: int) -> int:
    """The place of the first character from `place` on that is not white space; there is one."""
    return next(index for index in count(place) if not text[index].isspace())


def part_lengths(key: int, least: int, most: int, seed: int) -> Iterator[int]:
    """The most characters of each part of the document of `key`, without end: their logarithms are spread evenly."""
    for number in count():
        yield round(least * (most / least) ** (hashed(seed, _LENGTHS, key, number) / 2**64))


def parts_of(text: str, limits: Iterator[int]) -> list[str]:
    """The text cut at line ends into parts, each of at most its limit of characters; a longer line is a part.

    There must be a limit for every part.
    """
    parts: list[str] = []
    limit = 0
    for line in text.splitlines(keepends=True):
        if parts and len(parts[-1]) + len(line) <= limit:
            parts[-1] += line
        else:
            parts.append(line)
            limit = next(limits)
    return parts


def arrange(prefix: Ids, middle: Ids, suffix: Ids, marks: FimIds, order: Order = "psm") -> Ids:
    """The tokens between BOS and EOS of a rearranged document."""
    if order == "spm":
        return np.concatenate(([marks.begin, marks.hole], suffix, [marks.end], prefix, middle)).astype(np.int64)
    return np.concatenate(([marks.begin], prefix, [marks.hole], suffix, [marks.end], middle)).astype(np.int64)
