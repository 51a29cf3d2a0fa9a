"""`tapwater ablate` and `tapwater train` from files to pages, on models of a few thousand weights."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from tapwater.cli import main
from tapwater.data.lock import locked
from tapwater.errors import TrainingError
from tapwater.train import ablation
from tapwater.train.ablation_plan import Planned
from tapwater.train.loop import Finished
from training import make_corpus

train_verb = importlib.import_module("tapwater.cli.train")

BASE = """
[model]
model_type = "llama"
vocab_size = 300
hidden_size = 16
intermediate_size = 24
num_hidden_layers = 1
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 64
bos_token_id = 0
eos_token_id = 1
[data]
corpus = "CORPUS"
sequence_length = 32
packing_buffer = 8
[batch]
sequences = 2
[train]
directory = "OUT/run"
steps = 3
threads = 1
precision = "float32"
usd_per_hour = "0.09"
[schedule]
warmup_steps = 1
"""
ABLATION = """
base = "base.toml"
directory = "OUT/ablation"
steps = 3
seeds = 1
[[variants]]
name = "mha"
[[variants]]
name = "mqa"
model = { num_key_value_heads = 1 }
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tapwater.train.loop.matmul_peak", lambda *_: 1e10)  # measured for MFU alone, and slow
    make_corpus(tmp_path / "corpus")
    for name, text in (("base.toml", BASE), ("ablation.toml", ABLATION)):
        text = text.replace("CORPUS", str(tmp_path / "corpus")).replace("OUT", str(tmp_path))
        (tmp_path / name).write_text(text)
    return tmp_path


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as exited:
        main([*map(str, arguments)])
    return int(exited.value.code or 0)


def test_variants_can_be_added_one_after_the_other(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = files / "ablation.toml"
    assert run("ablate", config, "--only", "mqa", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in facts["variants"]] == ["mqa"]
    assert facts["variants"][0]["kv_bytes_per_token"] == 2 * 2 * 8
    first = (files / "ablation" / "mqa" / "seed-0" / "metrics.jsonl").read_bytes()
    assert run("ablate", config) == 0
    out, err = capsys.readouterr()
    assert "| mha | 1 |" in out and "| mqa | 1 |" in out and "mha, seed 0: finished step 3 of 3" in err
    assert (files / "ablation" / "table.md").read_text() == out
    assert (files / "ablation" / "mqa" / "seed-0" / "metrics.jsonl").read_bytes() == first
    assert run("ablate", config, "--only", "mla") == 1
    assert "no variant 'mla'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.steps=9", "says where an ablation's runs are and how long they take"),
        ("model.num_key_value_heads=2", "variant mqa of"),
        ("spikes.window=20", "do not go back after a loss spike"),
    ],
)
def test_settings_that_would_not_reach_every_run_are_refused(
    files: Path, capsys: pytest.CaptureFixture[str], override: str, said: str
) -> None:
    assert run("ablate", files / "ablation.toml", override) == 1
    assert said in " ".join(capsys.readouterr().err.split())
    assert not (files / "ablation").exists()


def test_runs_of_another_length_than_the_plan_are_refused(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = files / "ablation.toml"
    assert run("ablate", config, "--only", "mha") == 0
    capsys.readouterr()
    assert run("ablate", config, "--only", "mqa", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert [each["name"] for each in facts["variants"]] == ["mha", "mqa"]  # what is finished is reported too
    (files / "ablation" / "plan.json").unlink()
    kept = (files / "ablation" / "results.json").read_bytes()
    config.write_text(config.read_text().replace("steps = 3", "steps = 6"))
    assert run("ablate", config) == 1
    assert "mha, seed 0:" in (said := " ".join(capsys.readouterr().err.split())) and "began with 3 steps" in said
    assert (files / "ablation" / "results.json").read_bytes() == kept
    assert not (files / "ablation" / "plan.json").exists()


def test_a_refusal_leaves_the_plan_as_it_was(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = files / "ablation.toml"
    assert run("ablate", config, "--only", "mha") == 0
    plan = (files / "ablation" / "plan.json").read_bytes()
    assert run("ablate", config, "--only", "mqa", "optimizer.lr=0.5") == 1
    assert "variant mha: the run began with other settings of optimizer.lr" in " ".join(capsys.readouterr().err.split())
    assert (files / "ablation" / "plan.json").read_bytes() == plan
    with locked(files / "ablation"):
        assert run("ablate", config) == 1
    assert "another process is at work there" in " ".join(capsys.readouterr().err.split())
    assert run("ablate", config) == 0


def test_an_error_names_its_run_and_what_is_finished_is_reported(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ablation._run

    def failing(variant: Planned, *rest: Any) -> Finished:
        if variant.name == "mqa":
            raise TrainingError("out of luck")
        return train(variant, *rest)

    monkeypatch.setattr(ablation, "_run", failing)
    assert run("ablate", files / "ablation.toml") == 1
    assert "mqa, seed 0: out of luck" in capsys.readouterr().err
    assert "| mha | 1 |" in (files / "ablation" / "table.md").read_text()


def test_a_run_ends_with_its_page(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    baseline = {"source": "code", "method": "zstd", "bits_per_byte": 12.5, "num_bytes": 9, "detail": ""}
    (files / "corpus" / "baselines.json").write_text(json.dumps([baseline]))
    assert run("train", files / "base.toml") == 0
    assert "12.500" in (files / "run" / "report.html").read_text()
    (files / "run" / "report.html").unlink()
    monkeypatch.setattr(train_verb, "find_spec", lambda name: None)
    assert run("train", files / "base.toml") == 0  # no error at the end of days of training
    assert "no report: it needs matplotlib" in capsys.readouterr().err
    assert not (files / "run" / "report.html").exists()
