"""Models on disk: Hugging Face directories both ways, GGUF files, and where models come from."""

from tapwater.checkpoint.hf import load_hf, save_hf
from tapwater.checkpoint.load import LoadedModel, load, load_config
from tapwater.checkpoint.pull import pull
from tapwater.checkpoint.weights import Progress

__all__ = ["LoadedModel", "Progress", "load", "load_config", "load_hf", "pull", "save_hf"]
