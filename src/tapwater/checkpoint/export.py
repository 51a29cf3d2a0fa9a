"""From a checkpoint of training to a Hugging Face directory."""

from pathlib import Path
from typing import Literal

import torch

from tapwater.checkpoint.hf import save_hf
from tapwater.checkpoint.names import meta_model
from tapwater.checkpoint.store import Store
from tapwater.checkpoint.store_manifest import MANIFEST_FILE, Saved, list_checkpoints, read_facts, read_manifest
from tapwater.checkpoint.train_state import model_tensors
from tapwater.config import ModelConfig
from tapwater.config.parse import from_mapping
from tapwater.errors import CheckpointError
from tapwater.parallel.together import Together
from tapwater.text import Tokenizer

CHECKPOINTS = "checkpoints"  # in the directory of a run
TOKENIZER = "tokenizer"

Which = int | Literal["latest", "best"]


def export(source: Path, output: Path, tokenizer_directory: Path, which: Which, dtype: torch.dtype) -> Saved:
    """Write the model of a run, or of one of its checkpoints, to the new directory `output`; returns which it was.

    Routing biases stay float32 in any `dtype`. One process, whatever the number that saved. Raises CheckpointError for
    a checkpoint that is not there or damaged, a tokenizer with more tokens than the model embeds, and an `output` that
    exists.
    """
    if output.exists():
        raise CheckpointError(f"{output}: exists already; choose another directory or remove it first")
    saved = find_checkpoint(source, which)
    tokenizer = Tokenizer.from_directory(tokenizer_directory)
    facts = read_facts(saved.path)
    if not isinstance(facts.get("model"), dict):
        raise CheckpointError(f"{saved.path}: its facts do not say what model it is of")
    config = from_mapping(ModelConfig, facts["model"], f"{saved.path}: model")
    if tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{tokenizer_directory}: has {tokenizer.vocab_size} tokens, the model of {saved.path} embeds only "
            f"{config.vocab_size}"
        )
    model = meta_model(config).to_empty(device="cpu")
    alone = Together(alone=True)  # other processes of the run, if there are any, have no part in it
    Store(saved.path.parent, keep_last=1, keep_best=False, together=alone).load(saved.step, model_tensors(model))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    save_hf(model, output, tokenizer)
    return saved


def find_checkpoint(source: Path, which: Which) -> Saved:
    """A run's checkpoint; `source` may be a checkpoint itself, which then is the latest, the best and the only one."""
    if (source / MANIFEST_FILE).is_file():
        manifest = read_manifest(source)
        if which not in ("latest", "best", manifest.step):
            raise CheckpointError(f"{source}: is step {manifest.step}, not {which}")
        return Saved(manifest.step, source, manifest.score)
    directory = source / CHECKPOINTS
    if not directory.is_dir():
        raise CheckpointError(f"{source}: is no run of training: it has no directory {CHECKPOINTS}")
    listing = list_checkpoints(directory)
    if isinstance(which, int):
        found = listing.at(which)
    else:
        found = listing.latest() if which == "latest" else listing.best()
    if found is None:
        steps = ", ".join(str(saved.step) for saved in listing.complete) or "none"
        wanted = f"step {which}" if isinstance(which, int) else f"{which} checkpoint"
        why = "".join(f"; {reason}" for reason in listing.incomplete)
        raise CheckpointError(f"{directory}: there is no {wanted}; complete steps: {steps}{why}")
    return found
