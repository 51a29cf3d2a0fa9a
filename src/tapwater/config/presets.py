"""The published architectures by name."""

import tomllib
from pathlib import Path
from typing import Any

from tapwater.config.model import ModelConfig
from tapwater.config.parse import from_mapping, nearest
from tapwater.errors import ConfigError


def preset(name: str) -> ModelConfig:
    """The ModelConfig of a published model, e.g. `deepseek-v2-lite`; ConfigError naming the nearest for others."""
    tables = _tables()
    if name not in tables:
        raise ConfigError(f"no preset named {name!r}{nearest(name, tables)}; known: {', '.join(tables)}")
    return from_mapping(ModelConfig, tables[name], f"preset {name}")


def preset_names() -> list[str]:
    return list(_tables())


def _tables() -> dict[str, dict[str, Any]]:
    return tomllib.loads(Path(__file__).with_name("presets.toml").read_text(encoding="utf-8"))
