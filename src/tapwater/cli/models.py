"""Which model a verb is asked about, when its configuration is all that is wanted."""

from pathlib import Path

from tapwater.cli.common import DEFAULT_MODEL, locate_config
from tapwater.config import ModelConfig, preset, preset_names, read_config
from tapwater.config.parse import nearest
from tapwater.errors import ConfigError


def model_config(model: str) -> ModelConfig:
    """The configuration of a preset, config.json, model directory, .gguf file or model to pull, without its weights.

    ConfigError naming the nearest for a name that is none of them.
    """
    if model in preset_names():
        return preset(model)
    path = Path(model)
    if path.is_dir():
        path = path / "config.json"
    if path.name.endswith(".json"):
        return read_config(path)
    if "/" not in model and not path.exists() and model != DEFAULT_MODEL:
        known = [*preset_names(), DEFAULT_MODEL]
        raise ConfigError(
            f"no model, file or preset {model!r}{nearest(model.lower(), known)}; known: {', '.join(known)}"
        )
    return locate_config(model)
