"""Models on disk: Hugging Face directories both ways, GGUF files; `pull` brings them here."""

from tapwater.checkpoint.hf import load_hf, save_hf
from tapwater.checkpoint.load import LoadedModel, load_config, load_model
from tapwater.checkpoint.weights import Progress

__all__ = ["LoadedModel", "Progress", "load_config", "load_hf", "load_model", "save_hf"]
