"""Shuffled orders that are computed entry by entry, so that neither memory nor a saved state holds them."""

import hashlib
import struct


def hashed(*numbers: int) -> int:
    """64 bits that depend on all the numbers (64 bits each, signed), the same on every machine and in every version."""
    data = struct.pack(f"<{len(numbers)}q", *numbers)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def shuffled(place: int, size: int, *key: int) -> int:
    """The entry at `place` in an order of 0 .. size - 1 chosen by `key`.

    A Feistel network permutes the numbers of an even number of bits; those that are outside `size` are permuted again
    until they are inside (Black and Rogaway 2002), which takes four tries on average at the most.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = 2**half - 1
    while True:
        left, right = place >> half, place & mask
        for turn in range(4):
            left, right = right, left ^ (hashed(*key, turn, right) & mask)
        place = left << half | right
        if place < size:
            return place
