"""A tiny model with a tokenizer, as a Hugging Face directory and packed, for tests of the packed store."""

from pathlib import Path

from gguf_writing import train_bpe
from tapwater.checkpoint import Progress, open_source, save_hf, write_packed
from tapwater.config import replace_fields
from tapwater.model import Transformer
from tapwater.ops.quant import Format
from tapwater.text import Tokenizer
from tiny import CONFIGS

TEMPLATE = "{% for m in messages %}<|bos|>{{ m.role }}: {{ m.content }}\n{% endfor %}"


def write_model(path: Path, name: str = "v3", seed: int = 3, prediction_layers: int = 0) -> Path:
    """The tiny model `name` with a vocabulary of 512."""
    changes = {"vocab_size": 512, "num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": [1, 2]}
    config = replace_fields(CONFIGS[name], changes | {"num_nextn_predict_layers": prediction_layers}, name)
    backend = train_bpe(["<|bos|>", "<|eos|>", "<|end|>"], ["</think>"])
    tokenizer = Tokenizer(backend, bos_token_id=0, eos_token_ids=(1, 2), chat_template=TEMPLATE, add_bos_token=True)
    save_hf(Transformer.random(config, seed), path, tokenizer)
    return path


def write(source: Path, destination: Path, format: Format = Format.Q4_MIN, progress: Progress | None = None) -> Path:
    original, tokenizer = open_source(source)
    write_packed(original.config, original, tokenizer, format, destination, progress)
    return destination
