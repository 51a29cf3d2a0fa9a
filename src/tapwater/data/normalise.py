"""One spelling for text that means the same: line ends, Unicode, characters nobody sees."""

import re
import unicodedata
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_C0 = bytes(code for code in (*range(0x20), 0x7F) if chr(code) not in "\t\n")
_SLICE = 2**17  # bytes whose marks stay in a processor's cache
_C1 = re.compile("[\x80-\x9f]")
_BLANK, _TAB, _NEWLINE, _DELETE, _C1_LEAD = b" \t\n\x7f\xc2"


def normalise_all(texts: Sequence[str]) -> tuple[list[str], list[bytes]]:
    """`normalise` of each, and its UTF-8.

    Most are in normal form but for outer blanks: found out for all together, by numpy.
    """
    normal = [text.rstrip(" \t\n").lstrip("\n") for text in texts]
    utf8 = [text.encode() for text in normal]
    letters = np.frombuffer(b"\n".join([*utf8, b""]), dtype=np.uint8)
    wrong = np.empty(len(letters), dtype=bool)
    for start in range(0, len(letters), _SLICE):
        wrong[start : start + _SLICE] = _wrong(letters[start : start + _SLICE + 1])[:_SLICE]
    starts = np.cumsum([0, *(len(each) + 1 for each in utf8)])[:-1]
    doubtful = np.logical_or.reduceat(wrong, starts).tolist() if len(starts) else []
    for number, raw in enumerate(texts):
        if doubtful[number] or not _is_composed(normal[number]):
            normal[number] = normalise(raw)
            utf8[number] = normal[number].encode()
    return normal, utf8


def _wrong(letters: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether there is a control character or a blank at the end of a line."""
    wrong = letters - np.uint8(_NEWLINE + 1) < 0x20 - _NEWLINE - 1  # what is below wraps around
    wrong |= letters < _TAB
    wrong |= letters == _DELETE
    wrong[:-1] |= (letters[:-1] == _C1_LEAD) & (letters[1:] < 0xA0)
    ends = letters[1:] == _NEWLINE
    wrong[:-1] |= (letters[:-1] == _BLANK) & ends
    wrong[:-1] |= (letters[:-1] == _TAB) & ends
    return wrong


def _is_composed(text: str) -> bool:
    return text.isascii() or ("\ufeff" not in text and unicodedata.is_normalized("NFC", text))


def normalise(text: str) -> str:
    """Line ends become \\n; NFC; no byte order mark, control characters, blanks at line ends, outer blank lines.

    Tabs stay: they are program text. Changes nothing when applied twice.
    """
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _without_controls(text)
    if not text.isascii():
        text = text.replace("\ufeff", "")
        if not unicodedata.is_normalized("NFC", text):
            text = unicodedata.normalize("NFC", text)
    if _has_blank_ends(text):
        text = "\n".join([line.rstrip(" \t") for line in text.split("\n")])
    return text.rstrip(" \t\n").lstrip("\n")


def _has_blank_ends(text: str) -> bool:
    """Whether a line ends in a blank. To look for " \\n" is slower in text that has many of both."""
    letters = np.frombuffer(text.encode(), dtype=np.uint8)
    last = letters[np.flatnonzero(letters[1:] == ord("\n"))]
    return bool(((last == ord(" ")) | (last == ord("\t"))).any())


def _without_controls(text: str) -> str:
    utf8 = text.encode()
    kept = utf8.translate(None, _C0)
    if len(kept) != len(utf8):
        text = kept.decode()
    return _C1.sub("", text) if b"\xc2" in kept else text
