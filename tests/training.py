"""Small runs of training for tests: a corpus of a few words, models of a few thousand weights."""

import io
from decimal import Decimal
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from tokenizers import Tokenizer as Backend
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from tapwater.config import PretrainConfig
from tapwater.config.parse import from_mapping
from tapwater.data.corpus import Corpus
from tapwater.parallel import World, join
from tapwater.text import Tokenizer
from tapwater.train.loop import Run
from tiny_corpus import random_documents, write_corpus

VOCAB = 300
MOE = {
    "model_type": "deepseek_v2", "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48,
    "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8, "n_routed_experts": 8,
    "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1,
    "n_group": 1, "topk_group": 1, "initializer_range": 0.05, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def make_corpus(path: Path, first_seed: int = 0) -> Corpus:
    """Random tokens, with a tokenizer that has a token for every byte."""
    train = {name: random_documents(60, 20, seed, VOCAB) for seed, name in enumerate(("code", "prose"), first_seed)}
    heldout = {name: random_documents(6, 20, 10 + seed, VOCAB) for seed, name in enumerate(("code", "prose"))}
    corpus = write_corpus(path, train, heldout, VOCAB)
    letters = {letter: 2 + place for place, letter in enumerate(sorted(ByteLevel.alphabet()))}
    backend = Backend(BPE(vocab={"<bos>": 0, "<eos>": 1, **letters}, merges=[]))
    backend.add_special_tokens(["<bos>", "<eos>"])
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevelDecoder()
    tokenizer = Tokenizer(backend, bos_token_id=0, eos_token_ids=(1,), chat_template=None, add_bos_token=True)
    tokenizer.save(corpus.tokenizer_directory)
    return corpus


def make_config(corpus: Corpus, directory: Path, **sections: Any) -> PretrainConfig:
    """Eight steps of the small model; `sections` go over the tables of the same name, key by key (None: without)."""
    tables: dict[str, dict[str, Any]] = {
        "model": MOE,
        "data": {"corpus": str(corpus.path), "sequence_length": 32, "packing_buffer": 16},
        "batch": {"sequences": 4, "micro_sequences": 2},
        "train": {"directory": str(directory), "steps": 8, "precision": "float32", "seed": 3},
        "optimizer": {"lr": 0.01},
        "schedule": {"kind": "cosine", "warmup_steps": 2},
        "balance": {"num_devices": 4, "max_devices": 2},
        "checkpoint": {"every_steps": 4},
        "evaluation": {"every_steps": 4, "sequences": 4},
    }
    for name, table in sections.items():
        tables[name] = {**tables.get(name, {}), **table}
    tables = {name: {key: each for key, each in table.items() if each is not None} for name, table in tables.items()}
    return from_mapping(PretrainConfig, tables, "test")


def make_run(config: PretrainConfig, corpus: Corpus, world: World | None = None) -> Run:
    torch.set_num_threads(1)
    console = Console(file=io.StringIO(), width=200)
    return Run(config, corpus, world or join(config.parallel), console, Decimal("0.05"))
