"""Reading a GGUF file's metadata strictly: every key honoured, known to change nothing, or refused by name."""

import math
from typing import Any

from tapwater.checkpoint.gguf_container import GgufContainer
from tapwater.errors import CheckpointError


class Fields:
    """The metadata under one prefix. Asking for a key honours it; `refuse_rest` refuses those nobody asked for.

    Every method raises CheckpointError naming the file and the key.
    """

    def __init__(self, container: GgufContainer, prefix: str) -> None:
        self.container = container
        self._prefix = prefix
        self._values = {
            key.removeprefix(prefix): value for key, value in container.metadata.items() if key.startswith(prefix)
        }
        self._unasked = set(self._values)

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """The value of `key`, of type `kind` and finite; `default` where the file does not say."""
        self._unasked.discard(key)
        if key not in self._values:
            return default
        value = self._values[key]
        if type(value) is not kind or (kind is float and not math.isfinite(value)):
            shown = f"a list of {len(value)}" if isinstance(value, list) else repr(value)[:80]
            raise self.error(key, f"is {shown}, expected one {kind.__name__}")
        return value

    def need(self, key: str, kind: type) -> Any:
        if key not in self._values:
            raise self.error(key, "is missing")
        return self.get(key, kind)

    def expect(self, key: str, kind: type, expected: Any) -> None:
        """Let `key` be absent, or say what is done anyway."""
        value = self.get(key, kind, expected)
        if value != expected:
            raise self.error(key, f"is {value!r}; only {expected!r} is possible here")

    def ignore(self, keys: str) -> None:
        """Let keys (separated by spaces) say what they like: they change nothing."""
        self._unasked.difference_update(keys.split())

    def refuse_rest(self) -> None:
        for key in sorted(self._unasked):
            raise self.error(key, "is not supported; it might change what the model computes")

    def error(self, key: str, problem: str) -> CheckpointError:
        return CheckpointError(f"{self.container.path}: metadata {self._prefix}{key} {problem}")
