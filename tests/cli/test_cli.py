"""What holds for every verb: help at once, one line for a user's fault, exit codes, the environment read here only."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tapwater.checkpoint import packaged
from tapwater.cli import common, main
from tapwater.cli.speed import Stopwatch


def run(*arguments: str) -> int:
    """The exit code of `tapwater ARGUMENTS`, run in this process."""
    with pytest.raises(SystemExit) as exited:
        main(arguments)
    return int(exited.value.code or 0)


def test_help_needs_neither_torch_nor_the_web_framework() -> None:
    script = (
        "import sys, tapwater.cli\n"
        "heavy = {'torch', 'fastapi', 'pydantic', 'uvicorn', 'huggingface_hub', 'tokenizers'}\n"
        "print(heavy & set(sys.modules))"
    )
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=paths)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("verb", ["pull", "chat", "serve", "generate", "inspect"])
def test_help_names_every_verb_and_its_options(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    assert run("--help") == 0
    assert verb in capsys.readouterr().out
    assert run(verb, "--help") == 0
    assert common.DEFAULT_MODEL in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect", "no-such-model"], "no-such-model"),
        (["inspect", "no/such/dir/config.json"], "config.json: no such file"),
        (["pull", "./nowhere.gguf"], "nowhere.gguf"),
        (["serve", "engine.thread=2"], "did you mean 'threads'"),
        (["serve", "--config", "no-such.toml"], "no-such.toml: no such file"),
        (["serve", "--port", "70000"], "port must be between 0 and 65535"),
        (["serve", "--host", "no.such.host.invalid"], "server.host 'no.such.host.invalid'"),
        (["generate", "--prompt", "x", "engine.threads=many"], "threads: expected int"),
        (["generate", "--prompt", "x", "--temperature", "-1"], "temperature"),
        (["chat", "no-such-model"], "no-such-model"),
    ],
)
def test_a_fault_is_one_line_and_exit_code_1(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run(*arguments) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err


def test_a_damaged_model_is_one_clear_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(b"GGUF and nothing sensible after it")
    for arguments in (["inspect", str(damaged)], ["generate", str(damaged), "--prompt", "x"]):
        assert run(*arguments) == 1
        assert "damaged.gguf" in capsys.readouterr().err


def test_serving_without_its_packages_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("tapwater.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)  # as if it were not there
    assert run("serve") == 1
    assert "pip install 'tapwater[serve]'" in capsys.readouterr().err


def test_wrong_usage_is_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("frobnicate") == 2
    assert run("generate") == 2
    assert "--prompt" in capsys.readouterr().err


def test_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TAPWATER_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert common.cache_dir() == tmp_path / "own"
    monkeypatch.setenv("TAPWATER_CACHE", "~/mine")
    assert common.cache_dir() == Path.home() / "mine"
    monkeypatch.delenv("TAPWATER_CACHE")
    assert common.cache_dir() == tmp_path / "xdg" / "tapwater"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert common.cache_dir() == Path.home() / ".cache" / "tapwater"


def test_the_default_model_is_one_that_can_be_pulled() -> None:
    assert common.DEFAULT_MODEL == packaged.DEFAULT_MODEL


def test_an_override_in_the_place_of_the_model() -> None:
    assert common.split_overrides("engine.threads=2", ["server.port=1"]) == (
        common.DEFAULT_MODEL,
        ["engine.threads=2", "server.port=1"],
    )
    assert common.split_overrides("some/model", ["server.port=1"]) == ("some/model", ["server.port=1"])


def test_model_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Some-Model.Q4_1.gguf").touch()
    (tmp_path / "directory").mkdir()
    assert common.model_id(str(tmp_path / "Some-Model.Q4_1.gguf")) == "Some-Model.Q4_1"
    monkeypatch.chdir(tmp_path / "directory")
    assert common.model_id(".") == "directory"
    assert common.model_id("owner/name") == "owner/name"


def test_speed_leaves_the_prompt_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 10.5, 11.0])
    monkeypatch.setattr("tapwater.cli.speed.time.monotonic", lambda: next(clock))
    watch = Stopwatch()
    watch.tick(1)
    assert watch.summary == "1 token"
    watch.tick(2)
    watch.tick(3)
    assert watch.summary == "3 tokens · 2.0 tokens/s"
    assert watch.seconds == 11.0
