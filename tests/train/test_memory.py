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
from tapwater.cost.counts import parameters
from tapwater.data.corpus import Corpus
from tapwater.errors import ConfigError
from tapwater.model import Transformer
from tapwater.parallel import World, join
from tapwater.train import memory, setup
from tapwater.train.masters import Masters
from tapwater.train.memory import Needed, group_free_bytes, needed_bytes
from tapwater.train.optim import Optimizers
from training import make_config

CORPUS = cast(Corpus, SimpleNamespace(path="none"))  # only its place goes into a config


def needed_of(config: PretrainConfig, precision: memory.Precision) -> Needed:
    return needed_bytes(config, precision, join(config.parallel))


def with_rows(config: PretrainConfig, times: int) -> PretrainConfig:
    rows = times * config.batch.micro_sequences
    return replace(config, batch=replace(config.batch, micro_sequences=rows, sequences=rows))


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
    needed, doubled = needed_of(config, precision), needed_of(with_rows(config, 2), precision)
    activations = needed_of(with_rows(config, 3), precision).training - doubled.training  # of as many rows again
    # under Muon a tiny model's gates and vectors, which AdamW has, are some of it; the estimate leaves them out
    close = pytest.approx if optimizer == "adamw" else lambda value: pytest.approx(value, rel=0.02)
    assert needed.training - activations == close(held)
    assert needed.saving == close(saved)


def test_modules_that_predict_ahead_are_counted(tmp_path: Path) -> None:
    v3 = {"model_type": "deepseek_v3", "topk_method": "noaux_tc", "scoring_func": "sigmoid"}
    without, ahead = (
        make_config(CORPUS, tmp_path / "run", model={**v3, "num_nextn_predict_layers": depths}) for depths in (0, 1)
    )
    weights = sum(each.numel() for each in Transformer.random(ahead.model, 0).mtp.parameters())
    more = needed_of(ahead, "float32").saving - needed_of(without, "float32").saving
    assert more == pytest.approx(12 * weights, rel=1e-3)  # a routing bias is counted as a weight
    assert needed_of(ahead, "float32").training - needed_of(without, "float32").training > 16 * weights


def test_processes_share_what_is_spread(tmp_path: Path) -> None:
    """Moments and the copy that is saved are divided by dp, sums of gradients are not until the last micro-batch."""
    found = {}
    for dp, sequences in ((1, 8), (4, 8), (4, 32)):
        config = make_config(CORPUS, tmp_path / "run", parallel={"dp": dp}, batch={"sequences": sequences})
        found[dp, sequences] = needed_bytes(config, "bf16", World(config.parallel, dp - 1, torch.device("cpu"), None))
    assert found[4, 8].saving == pytest.approx(found[1, 8].saving / 4)
    sums = found[4, 32].training - found[4, 8].training
    assert sums == pytest.approx(3 / 4 * 4 * parameters(config.model).total)
    assert found[4, 8].training < found[1, 8].training


def test_the_copy_of_a_checkpoint_must_fit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(CORPUS, tmp_path / "run")
    world = join(config.parallel)
    needed = needed_of(config, "float32")
    monkeypatch.setattr(memory, "free_bytes", lambda: needed.training + needed.saving)
    memory.check_memory(config, "float32", world)
    monkeypatch.setattr(memory, "free_bytes", lambda: needed.training + needed.saving - 1)
    with pytest.raises(ConfigError, match=r"needs about [\d.]+ GB in each process"):
        memory.check_memory(config, "float32", world)


def test_a_trial_of_precisions_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("was tried")

    config: PretrainConfig = make_config(CORPUS, tmp_path / "run", train={"precision": "auto"})
    monkeypatch.setattr(setup, "fits", lambda *_: True)
    monkeypatch.setattr(setup, "_faster", never)
    monkeypatch.setattr(memory, "free_bytes", lambda: 1e6)
    with pytest.raises(ConfigError, match=r"trying which precision is faster needs .*; set train\.precision"):
        setup.choose_precision(config, join(config.parallel))


@pytest.mark.parametrize("fitting", ["float32", "bf16", None])
def test_a_precision_that_does_not_fit_is_neither_tried_nor_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fitting: str | None
) -> None:
    config = make_config(CORPUS, tmp_path / "run", train={"precision": "auto"})
    monkeypatch.setattr(setup, "fits", lambda config, precision, world: precision == fitting)
    monkeypatch.setattr(setup, "_faster", lambda *_: pytest.fail("was tried"))
    assert setup.choose_precision(config, join(config.parallel)) == (fitting or "bf16")


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
