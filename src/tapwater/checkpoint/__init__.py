"""Models on disk: Hugging Face directories and packed ones both ways, GGUF files; `pull` brings them here."""

from tapwater.checkpoint.hf import load_hf, save_hf
from tapwater.checkpoint.load import LoadedModel, LoadedPacked, load_config, load_model, load_packed, open_source
from tapwater.checkpoint.packed_store import PackedDirectory
from tapwater.checkpoint.packed_writer import write_packed
from tapwater.checkpoint.packing import pack_weights
from tapwater.checkpoint.weights import Progress

__all__ = [
    "LoadedModel",
    "LoadedPacked",
    "PackedDirectory",
    "Progress",
    "load_config",
    "load_hf",
    "load_model",
    "load_packed",
    "open_source",
    "pack_weights",
    "save_hf",
    "write_packed",
]
