"""Runs on every mesh, end to end: metrics, checkpoints read on another mesh, the export."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from dist.processes import Raised, run
from dist.runs import train
from tapwater.checkpoint import load_hf
from tapwater.checkpoint.store_manifest import list_checkpoints
from tapwater.data.corpus import Corpus
from training import make_corpus

BASE: dict[str, Any] = {"batch": {"sequences": 8, "micro_sequences": 1}, "optimizer": {"lr": 1e-3, "eps": 1e-5}}
MESHES = {
    "dp2 ep2": {"dp": 2, "ep": 2},
    "pp2 zbv": {"pp": 2, "schedule": "zbv", "stages_per_process": 2},
    "dp2": {"dp": 2},
    "pp2": {"pp": 2},
}
QUICK = ("dp2 ep2",)
FOUR = {"dp4 ep2": {"dp": 4, "ep": 2}, "dp2 ep2 pp2": {"dp": 2, "ep": 2, "pp": 2}}
LAYERS = {"num_hidden_layers": 5}  # enough for four stages


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "built")


def agree(mesh: dict[str, Any], processes: int, corpus: Corpus, directory: Path, precision: str) -> None:
    """A run on a mesh has the curve and, nearly, the weights of one process."""
    sections = {**BASE, "model": LAYERS, "train": {"precision": precision}}
    alone = train(corpus.path, directory / "alone", sections)
    found = run(processes, directory, [(train, (corpus.path, directory / "many", {**sections, "parallel": mesh}))])
    for answers in found:
        assert not isinstance(answers[0], Raised), answers[0]
    tolerance = 2e-5 if precision == "float32" else 2e-2
    for mine, theirs in zip(found[0][0], alone, strict=True):
        assert mine == pytest.approx(theirs, rel=tolerance)
    weights, expected = (load_hf(directory / name / "export").state_dict() for name in ("many", "alone"))
    for name, weight in expected.items():
        torch.testing.assert_close(weights[name].float(), weight.float(), rtol=0.02, atol=5e-3, msg=name)


@pytest.mark.parametrize("name", QUICK)
def test_two_processes_run_as_one(name: str, corpus: Corpus, tmp_path: Path):
    agree(MESHES[name], 2, corpus, tmp_path, "float32")


def test_a_run_goes_on_with_another_number_of_processes(corpus: Corpus, tmp_path: Path):
    """One process, then two, then one again: the curve of one that was never stopped."""
    sections = {**BASE, "model": LAYERS, "checkpoint": {"every_steps": 2, "keep_last": 9}}
    alone = train(corpus.path, tmp_path / "alone", sections)
    went_on = shutil.copytree(tmp_path / "alone", tmp_path / "went-on")

    back_to(went_on, 2)
    sections["parallel"] = MESHES["dp2 ep2"]
    found = run(2, tmp_path, [(train, (corpus.path, went_on, sections))])
    for answers in found:
        assert not isinstance(answers[0], Raised), answers[0]
    back_to(went_on, 6)  # which the two wrote
    last = train(corpus.path, went_on, {**sections, "parallel": {}})
    for mine, theirs in zip(last, alone, strict=True):
        assert mine == pytest.approx(theirs, rel=2e-5)
    assert last[0][:2] == alone[0][:2]  # these steps were there already


def back_to(directory: Path, step: int) -> None:
    """As if the run had been killed after the checkpoint of `step`."""
    saved = list_checkpoints(directory / "checkpoints").complete
    assert step in [each.step for each in saved]
    for each in saved:
        if each.step > step:
            shutil.rmtree(each.path)
    shutil.rmtree(directory / "export")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in MESHES if name not in QUICK])
def test_other_meshes_of_two_processes(name: str, corpus: Corpus, tmp_path: Path):
    agree(MESHES[name], 2, corpus, tmp_path, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dp2", "dp2 ep2", "pp2"])
def test_mixed_precision_on_two_processes(name: str, corpus: Corpus, tmp_path: Path):
    agree(MESHES[name], 2, corpus, tmp_path, "bf16")


@pytest.mark.slow
@pytest.mark.parametrize("name", FOUR)
def test_four_processes_run_as_one(name: str, corpus: Corpus, tmp_path: Path):
    agree(FOUR[name], 4, corpus, tmp_path, "float32")
