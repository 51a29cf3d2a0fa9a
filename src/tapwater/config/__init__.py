"""Typed, frozen, derived configuration: of models (Hugging Face's spelling) and of runs (TOML)."""

from tapwater.config.huggingface import from_hf, read_config, read_json, to_hf
from tapwater.config.model import ModelConfig, RopeScaling, replace_fields
from tapwater.config.presets import preset, preset_names
from tapwater.config.run import EngineConfig, RunConfig, ServerConfig, load_run

__all__ = [
    "EngineConfig",
    "ModelConfig",
    "RopeScaling",
    "RunConfig",
    "ServerConfig",
    "from_hf",
    "load_run",
    "preset",
    "preset_names",
    "read_config",
    "read_json",
    "replace_fields",
    "to_hf",
]
