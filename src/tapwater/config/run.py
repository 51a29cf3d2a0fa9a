"""The typed sections of a run, and how a TOML file and `section.key=value` overrides fill them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tapwater.config.parse import apply_override, from_mapping, read_toml
from tapwater.errors import ConfigError


@dataclass(frozen=True)
class EngineConfig:
    """Memory and scheduling of the engine."""

    backend: Literal["auto", "native", "torch"] = "auto"  # auto: the native kernels where they are built
    dtype: Literal["stored", "float32", "bfloat16", "q8", "q4"] = "stored"  # weights; stored: as the file has them
    cache_dtype: Literal["auto", "float32", "bfloat16", "q8", "q6"] = "auto"  # auto: bfloat16, with torch as weights
    threads: int = 0  # 0: one per core
    page_size: int = 16  # tokens per page
    cache_tokens: int = 32768  # tokens the cache holds, over all requests
    max_batch_tokens: int = 512  # tokens computed in one step, over all requests
    max_requests: int = 64  # requests computed in one step
    max_context: int = 0  # longest prompt + output in tokens; 0: what the model and the cache allow

    def __post_init__(self) -> None:
        limits = dict.fromkeys(("page_size", "max_batch_tokens", "max_requests"), (1, 2**20))
        limits |= {"cache_tokens": (1, 2**40), "max_context": (0, 2**40), "threads": (0, 1024)}
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise ConfigError(f"{name} must be between {low} and {high}, got {getattr(self, name)}")
        if self.backend == "native" and self.dtype == "float32":
            raise ConfigError("dtype float32 needs backend torch: the native kernels know bfloat16, q8 and q4")
        if self.backend == "torch" and self.dtype in ("q8", "q4"):
            raise ConfigError(f"dtype {self.dtype} needs backend native: torch knows float32 and bfloat16")
        if self.is_torch and self.cache_dtype not in ("auto", self.torch_dtype):
            raise ConfigError(
                f"cache_dtype {self.cache_dtype} needs backend native: with torch the cache is kept as the weights "
                f"are, in {self.torch_dtype}"
            )
        if self.cache_tokens % self.page_size:
            raise ConfigError(f"cache_tokens {self.cache_tokens} is not a multiple of page_size {self.page_size}")
        if self.max_requests > self.max_batch_tokens:
            raise ConfigError(
                f"max_requests {self.max_requests} is more than max_batch_tokens {self.max_batch_tokens}: each request "
                "needs a token of every step"
            )

    @property
    def is_torch(self) -> bool:
        """Whether only torch can honour these settings."""
        return self.backend == "torch" or self.dtype == "float32"

    @property
    def torch_dtype(self) -> str:
        """The dtype of weights on the torch backend: quantised files are computed in float32."""
        return "bfloat16" if self.dtype == "bfloat16" else "float32"


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
        if not 0 <= self.drain_s <= 86400:
            raise ConfigError(f"drain_s must be between 0 and 86400 (a day), got {self.drain_s}")


@dataclass(frozen=True)
class RunConfig:
    """Everything a run can be told, by section."""

    engine: EngineConfig = field(default_factory=EngineConfig)
    server: ServerConfig = field(default_factory=ServerConfig)


def load_run(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """RunConfig from an optional TOML file and `section.key=value` overrides, later ones winning.

    Raises ConfigError for a missing or malformed file, an unknown section or key (naming the nearest) or a wrong type.
    """
    values = {} if path is None else read_toml(path)
    if path is not None:
        from_mapping(RunConfig, values, str(path))  # so that the file's faults are the file's
    for override in overrides:
        apply_override(values, override)
    return from_mapping(RunConfig, values, "command line")
