"""Tokens and tokens per second of one answer, as the verbs show them."""

import time


class Stopwatch:
    """Counts an answer's tokens; its speed is that of the tokens after the first, whose time is the prompt's."""

    def __init__(self) -> None:
        self._begin = self._first = self._last = time.monotonic()
        self._num_tokens = 0

    def tick(self, num_tokens: int) -> None:
        """The answer now has `num_tokens` tokens."""
        self._last = time.monotonic()
        if self._num_tokens == 0:
            self._first = self._last
        self._num_tokens = num_tokens

    @property
    def seconds(self) -> float:
        """From the request to the last token."""
        return self._last - self._begin

    @property
    def summary(self) -> str:
        tokens = f"{self._num_tokens} token{'' if self._num_tokens == 1 else 's'}"
        elapsed = self._last - self._first
        return f"{tokens} · {(self._num_tokens - 1) / elapsed:.1f} tokens/s" if elapsed > 0 else tokens
