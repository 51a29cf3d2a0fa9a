"""What a run needs against what is free."""

from dataclasses import replace
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch.nn import Parameter

from tapwater.config import PretrainConfig
from tapwater.data.corpus import Corpus
from tapwater.errors import ConfigError
from tapwater.model import Transformer
from tapwater.parallel import join
from tapwater.train import memory, setup
from tapwater.train.masters import Masters
from tapwater.train.memory import PROGRAM_BYTES, group_free_bytes, needed_bytes
from tapwater.train.optim import Optimizers
from training import make_config

CORPUS = cast(Corpus, SimpleNamespace(path="none"))  # only its place goes into a config


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_state_of_training_and_its_copy_are_counted(
    tmp_path: Path, precision: memory.Precision, optimizer: str
) -> None:
    config = make_config(CORPUS, tmp_path / "run", optimizer={"name": optimizer})
    model = Transformer.random(config.model, 0)
    masters = Masters(model, precision)
    optimizers = Optimizers(masters.named.items(), config.optimizer)
    for parameter in {*model.parameters(), *masters.named.values()}:
        parameter.grad = torch.zeros_like(parameter)
    optimizers.rehearse()
    moments = sum(
        value.nbytes
        for each in optimizers.list
        for held in each.state.values()
        for value in held.values()
        if value.ndim
    )
    tensors: set[Parameter] = {*model.parameters(), *masters.named.values()}
    held = sum(2 * each.nbytes for each in tensors) + moments  # each with its gradient
    saved = sum(each.nbytes for each in masters.named.values()) + moments
    needed = needed_bytes(config, precision, 1)
    doubled = replace(config, batch=replace(config.batch, micro_sequences=2 * config.batch.micro_sequences))
    activations = needed_bytes(doubled, precision, 1).training - needed.training
    # under Muon a tiny model's gates and vectors, which AdamW has, are some of it; the estimate leaves them out
    close = pytest.approx if optimizer == "adamw" else lambda value: pytest.approx(value, rel=0.02)
    assert needed.training - activations == close(held)
    assert needed.saving - PROGRAM_BYTES == close(saved)


def test_the_copy_of_a_checkpoint_must_fit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(CORPUS, tmp_path / "run")
    world = join(config.parallel)
    needed = needed_bytes(config, "float32", 1)
    monkeypatch.setattr(memory, "free_bytes", lambda: needed.training + needed.saving)
    memory.check_memory(config, "float32", world)
    monkeypatch.setattr(memory, "free_bytes", lambda: needed.training + needed.saving - 1)
    with pytest.raises(ConfigError, match=r"needs about [\d.]+ GB in each process"):
        memory.check_memory(config, "float32", world)


def test_a_trial_of_precisions_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("was tried")

    config: PretrainConfig = make_config(CORPUS, tmp_path / "run", train={"precision": "auto"})
    monkeypatch.setattr(setup, "check_memory", lambda *_: None)
    monkeypatch.setattr(setup, "_faster", never)
    monkeypatch.setattr(memory, "free_bytes", lambda: 1e6)
    with pytest.raises(ConfigError, match=r"to try which precision is faster .*train\.precision: set it to"):
        setup.choose_precision(config, join(config.parallel))


@pytest.mark.parametrize(
    ("limit", "used"),
    [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")],
)
def test_a_control_group_limits_what_is_free(tmp_path: Path, limit: str, used: str) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / limit).write_text("8000\n")
    assert group_free_bytes(tmp_path) == inf  # no such group: a file alone says nothing
    (tmp_path / used).write_text("5000\n")
    (tmp_path / used).with_name("memory.stat").write_text("anon 3500\nactive_file 1000\ninactive_file 500\n")
    assert group_free_bytes(tmp_path) == 4500
    if limit == "memory.max":
        (tmp_path / limit).write_text("max\n")
        assert group_free_bytes(tmp_path) == inf
