"""Typed, frozen, derived configuration: of models (Hugging Face's spelling) and of runs (TOML)."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tapwater.config.huggingface import from_hf, read_config, read_json, to_hf
    from tapwater.config.model import ModelConfig, RopeScaling, replace_fields
    from tapwater.config.presets import preset, preset_names
    from tapwater.config.pretrain import BalanceConfig, PretrainConfig, load_pretrain
    from tapwater.config.run import EngineConfig, RunConfig, ServerConfig, load_run

__all__ = [
    "BalanceConfig",
    "EngineConfig",
    "ModelConfig",
    "PretrainConfig",
    "RopeScaling",
    "RunConfig",
    "ServerConfig",
    "from_hf",
    "load_pretrain",
    "load_run",
    "preset",
    "preset_names",
    "read_config",
    "read_json",
    "replace_fields",
    "to_hf",
]

# Each file is read when one of its names is first asked for (PEP 562): to start a verb, all of them take too long.
_FILE_OF = {
    "BalanceConfig": "pretrain",
    "EngineConfig": "run",
    "ModelConfig": "model",
    "PretrainConfig": "pretrain",
    "RopeScaling": "model",
    "RunConfig": "run",
    "ServerConfig": "run",
    "from_hf": "huggingface",
    "load_pretrain": "pretrain",
    "load_run": "run",
    "preset": "presets",
    "preset_names": "presets",
    "read_config": "huggingface",
    "read_json": "huggingface",
    "replace_fields": "model",
    "to_hf": "huggingface",
}


def __getattr__(name: str) -> object:
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
