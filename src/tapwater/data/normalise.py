"""One spelling for text that means the same: line ends, Unicode, characters nobody sees."""

import re
import unicodedata

import numpy as np

_C0 = bytes(code for code in (*range(0x20), 0x7F) if chr(code) not in "\t\n")
_C1 = re.compile("[\x80-\x9f]")


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
