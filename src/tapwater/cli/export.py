"""`tapwater export`: a checkpoint of training as a Hugging Face directory."""

from pathlib import Path
from typing import Literal

from tapwater.errors import ConfigError


def export(
    run: Path,
    output: Path,
    /,
    *,
    step: str = "latest",
    dtype: Literal["bfloat16", "float32"] = "bfloat16",
    tokenizer: Path | None = None,
) -> None:
    """Write a checkpoint of training as a Hugging Face directory, which transformers and `tapwater serve` read.

    Parameters
    ----------
    run
        The directory of a run, or one of its checkpoints.
    output
        The directory to make.
    step
        The number of a step, `latest`, or `best`: the lowest held-out bits per byte of those kept.
    dtype
        What weights are stored as; training keeps float32.
    tokenizer
        The directory of its tokenizer; without it the run's own.
    """
    which = _which(step)
    import torch

    from tapwater.checkpoint.export import TOKENIZER, find_checkpoint
    from tapwater.checkpoint.export import export as export_checkpoint
    from tapwater.cli.common import console

    if tokenizer is None:
        # <run>/checkpoints/step-00000100
        tokenizer = find_checkpoint(run, which).path.absolute().parent.parent / TOKENIZER
    saved = export_checkpoint(
        run, output, tokenizer, which, {"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype]
    )
    console().print(f"{saved.path} -> {output}, {dtype}", markup=False, highlight=False, soft_wrap=True)


def _which(step: str) -> int | Literal["latest", "best"]:
    if step == "latest" or step == "best":
        return step
    if step.isascii() and step.isdigit():
        return int(step)
    raise ConfigError(f"--step must be the number of a step, latest or best, not {step!r}")
