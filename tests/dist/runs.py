"""A whole run of `tapwater train` in one of several processes."""

from pathlib import Path
from typing import Any

from tapwater.data.corpus import Corpus
from tapwater.parallel import join, leave
from tapwater.train.metrics import read_evaluations, read_steps
from training import make_config, make_run


def train(corpus: Path, directory: Path, sections: dict[str, Any]) -> tuple[list[float], list[float], list[float]]:
    """Cross-entropy and gradient norm of each step, and the bits per byte of each evaluation."""
    opened = Corpus.open(corpus)
    config = make_config(opened, directory, **sections)
    world = join(config.parallel)
    try:
        make_run(config, opened, world).train()
    finally:
        leave()
    steps = read_steps(directory)
    bits = [line["bits_per_byte"] for line in read_evaluations(directory)]
    return [line["ce"] for line in steps], [line["grad_norm"] for line in steps], bits
