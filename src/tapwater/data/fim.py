"""Fill-in-the-middle: documents rearranged so that a model learns to write what is missing inside.

Whole documents, before packing, in the order prefix, suffix, middle, cut between any two characters (DeepSeek-Coder,
arXiv 2401.14196, section 3.1.2):

    BOS <fim_begin> prefix <fim_hole> suffix <fim_end> middle EOS

A document that is much longer than a row of training falls apart there, and few rows see its middle with what is around
it: `fim.part_chars` cuts such documents into parts first (context-level infilling: Bavarian et al., arXiv 2207.14255,
section 3).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tapwater.data.permutation import hashed

Ids = NDArray[np.integer]

FIM_TOKENS = ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>")
_CHOSEN, _CUTS = 1, 2  # draws of one document that are independent of each other


@dataclass(frozen=True)
class FimIds:
    """Token ids of the three marks."""

    begin: int
    hole: int
    end: int


def is_chosen(key: int, rate: float, seed: int) -> bool:
    """Whether the document of `key` is among the share `rate` that is rearranged."""
    return hashed(seed, _CHOSEN, key) < rate * 2**64


def split_text(text: str, key: int, seed: int) -> tuple[str, str, str]:
    """Prefix, middle and suffix: two cuts drawn for the document of `key`, any of the parts may be empty."""
    first, second = sorted(hashed(seed, _CUTS, key, place) % (len(text) + 1) for place in range(2))
    return text[:first], text[first:second], text[second:]


def parts_of(text: str, most_chars: int) -> list[str]:
    """The text cut at line ends into parts of at most so many characters; a longer line is a part by itself."""
    parts: list[str] = []
    for line in text.splitlines(keepends=True):
        if parts and len(parts[-1]) + len(line) <= most_chars:
            parts[-1] += line
        else:
            parts.append(line)
    return parts


def arrange(prefix: Ids, middle: Ids, suffix: Ids, marks: FimIds) -> Ids:
    """The tokens between BOS and EOS of a rearranged document."""
    return np.concatenate(([marks.begin], prefix, [marks.hole], suffix, [marks.end], middle)).astype(np.int64)
