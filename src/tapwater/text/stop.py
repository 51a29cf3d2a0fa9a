"""Stop strings in a stream of text pieces whose borders fall anywhere."""

from collections.abc import Sequence

from tapwater.errors import RequestError


class StopStrings:
    """Cuts a stream of text before the first stop string to be completed, as if the text came one character at a time.

    So the cut does not depend on where the pieces end. Of stop strings that are completed by the same character the
    longest counts. Raises `RequestError` if a stop string is empty or no string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if isinstance(stops, str) or not all(isinstance(stop, str) for stop in stops):
            raise RequestError(f"Stop strings must be a list of strings, got {stops!r}", param="stop")
        if "" in stops:
            raise RequestError("A stop string must not be empty", param="stop")
        self._stops = tuple(stops)
        self._held = ""  # seen but not given out: could be the start of a stop string
        self._stopped = False

    def push(self, text: str) -> tuple[str, bool]:
        """Take the next piece; return the text that is safe to show now and whether a stop string has been met."""
        if self._stopped:
            return "", True
        seen = self._held + text
        found = [(start + len(stop), start) for stop in self._stops if (start := seen.find(stop)) >= 0]
        if found:
            self._stopped = True
            self._held = ""
            _, start = min(found)
            return seen[:start], True
        safe = len(seen) - self._held_length(seen)
        self._held = seen[safe:]
        return seen[:safe], False

    def flush(self) -> str:
        """Return the text still held back; call it when the stream has ended without meeting a stop string."""
        held, self._held = self._held, ""
        return held

    def _held_length(self, seen: str) -> int:
        """Length of the longest end of `seen` that is the start of a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(seen)), 0, -1):
            if any(stop.startswith(seen[-length:]) for stop in self._stops):
                return length
        return 0
