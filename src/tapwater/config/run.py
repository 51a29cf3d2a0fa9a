"""The typed sections of a run, and how a TOML file and `section.key=value` overrides fill them."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tapwater.config.parse import from_mapping
from tapwater.errors import ConfigError


@dataclass(frozen=True)
class EngineConfig:
    """Memory and scheduling of the engine."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int = 0  # 0: one per core
    page_size: int = 16  # tokens per page
    cache_tokens: int = 32768  # tokens the cache holds, over all requests
    max_batch_tokens: int = 512  # tokens computed in one step, over all requests
    max_requests: int = 64  # requests computed in one step
    max_context: int = 0  # longest prompt + output in tokens; 0: what the model and the cache allow

    def __post_init__(self) -> None:
        for name in ("page_size", "cache_tokens", "max_batch_tokens", "max_requests"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("threads", "max_context"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.cache_tokens < self.page_size:
            raise ConfigError(f"cache_tokens {self.cache_tokens} is less than one page ({self.page_size})")


@dataclass(frozen=True)
class ServerConfig:
    """The HTTP endpoint."""

    host: str = "127.0.0.1"
    port: int = 8000
    max_waiting: int = 256  # requests admitted but not finished; more are answered 503
    drain_s: float = 30.0  # how long a shutdown waits for running requests before it aborts them

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port must be between 0 and 65535, got {self.port}")
        if self.max_waiting < 1:
            raise ConfigError(f"max_waiting must be at least 1, got {self.max_waiting}")
        if self.drain_s < 0:
            raise ConfigError(f"drain_s must not be negative, got {self.drain_s}")


@dataclass(frozen=True)
class RunConfig:
    """Everything a run can be told, by section."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    server: ServerConfig = field(default_factory=ServerConfig)


def load_run(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """RunConfig from an optional TOML file and `section.key=value` overrides, later ones winning.

    Raises ConfigError for a missing or malformed file, an unknown section or key (naming the nearest) or a wrong type.
    """
    values: dict[str, Any] = {}
    where = "command line"
    if path is not None:
        where = str(path)
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
            raise ConfigError(f"{path}: not a readable TOML file: {error}") from None
    for override in overrides:
        _apply(values, override)
    return from_mapping(RunConfig, values, where)


def _apply(values: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    section, dot, key = name.partition(".")
    if not (equals and dot and section and key):
        raise ConfigError(f"{override!r}: overrides are written section.key=value, e.g. engine.threads=2")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string; the field's type is checked next
    table = values.setdefault(section, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{override!r}: {section} is not a section")
    table[key] = value
