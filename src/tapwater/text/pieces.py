"""The bytes behind a token string, for the two spellings tokenizers use: byte-level BPE and SentencePiece."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass

import tokenizers

from tapwater.errors import CheckpointError

# What tokenizer.json says of its decoder, in the shapes honoured here.
_BYTE_LEVEL = ["ByteLevel"]
_SENTENCEPIECE = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
]
_STRIP_FIRST_SPACE = {"type": "Strip", "content": " ", "start": 1, "stop": 0}

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True)
class Pieces:
    """How token strings spell bytes: `bytes_of(token)`, and whether a text loses the space it starts with."""

    bytes_of: Callable[[str], bytes]
    strips_first_space: bool


def read_pieces(backend: tokenizers.Tokenizer) -> Pieces:
    """Find out how `backend` spells bytes; raises `CheckpointError` for a decoder that is neither of the two."""
    if backend.decoder is None:
        raise CheckpointError("tokenizer.json has no decoder; byte-level BPE and SentencePiece decoders are supported")
    decoder = json.loads(backend.decoder.__getstate__())
    steps = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    if [step["type"] for step in steps] == _BYTE_LEVEL:
        return Pieces(_byte_level_bytes, strips_first_space=False)
    if steps == _SENTENCEPIECE:
        return Pieces(_sentencepiece_bytes, strips_first_space=False)
    if steps == [*_SENTENCEPIECE, _STRIP_FIRST_SPACE]:
        return Pieces(_sentencepiece_bytes, strips_first_space=True)
    raise CheckpointError(
        f"tokenizer.json: decoder {' + '.join(step['type'] for step in steps)} is not supported; "
        "byte-level BPE and SentencePiece with byte fallback are"
    )


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: a printable Latin-1 byte is its own character, the others follow from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(0x100) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF_CHARACTER = _byte_level_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    except KeyError:  # an added token is stored as it reads, not in the alphabet
        return token.encode()


def _sentencepiece_bytes(token: str) -> bytes:
    if match := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(match[1], 16)])
    return token.replace("▁", " ").encode()
