"""Runs: TOML, overrides, and what is refused."""

import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from tapwater.config import EngineConfig, RunConfig, load_run
from tapwater.errors import ConfigError


def test_later_settings_win(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text('[engine]\nthreads = 3\npage_size = 8\n[server]\nhost = "::1"\n')
    run = load_run(path, ["engine.threads=2", "server.drain_s=5", "engine.dtype=bfloat16", 'server.host="0.0.0.0"'])
    assert (run.engine.threads, run.engine.page_size, run.engine.dtype) == (2, 8, "bfloat16")
    assert (run.server.host, run.server.drain_s) == ("0.0.0.0", 5.0)
    assert load_run(None) == RunConfig()
    assert load_run(None, ["engine.threads=2"]).engine == EngineConfig(threads=2)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["engine.thread=2"], "unknown field 'thread'; did you mean 'threads'"),
        (["motor.threads=2"], "unknown field 'motor'"),
        (["engine.threads=two"], "engine: threads: expected int, got str 'two'"),
        (["engine.threads=true"], "expected int, got bool"),
        (["engine.threads=1.5"], "expected int, got float"),
        (["engine.threads"], "section.key=value"),
        (["threads=2"], "section.key=value"),
        (["engine.dtype=float32", "engine.backend=native"], "float32 needs backend torch"),
        (["engine.dtype=q4", "engine.backend=torch"], "q4 needs backend native"),
        (["engine.cache_dtype=q8", "engine.backend=torch"], "cache_dtype q8 needs backend native"),
        (["engine.dtype=float16"], "'float16' is not one of 'stored', 'float32', 'bfloat16'"),
        (["engine.page_size=0"], "engine: page_size must be between 1"),
        (["engine.cache_tokens=3"], "not a multiple of page_size"),
        (["server.port=70000"], "server: port must"),
        (["engine=3"], "section.key=value"),
        (["engine.threads=2\nfoo = 3"], "one line"),
        (["engine.threads=" + "9" * 5000], "threads"),
        (["engine.threads=1000000"], "threads must be between 0 and 1024"),
        (["server.drain_s=inf"], "not a finite number"),
        (["server.drain_s=nan"], "not a finite number"),
        (["engine.max_requests=600"], "more than max_batch_tokens"),
    ],
)
def test_a_bad_override_is_named(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_run(None, overrides)


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_run(tmp_path / "absent.toml")
    path = tmp_path / "run.toml"
    path.write_text("engine = 3")
    with pytest.raises(ConfigError, match=r"run\.toml: engine: expected a table"):
        load_run(path, ["engine.threads=1"])
    path.write_text("a = " + "[" * 10_000)
    with pytest.raises(ConfigError, match=r"run\.toml.*TOML"):
        load_run(path)
    path.write_text("[engine]\nthreads = 2\n")
    with pytest.raises(ConfigError, match="command line: engine: threads"):
        load_run(path, ["engine.threads=-1"])
    path.write_text("[engine\n")
    with pytest.raises(ConfigError, match=r"run\.toml.*TOML"):
        load_run(path)


def test_the_example_states_every_default() -> None:
    path = Path(__file__).parents[2] / "configs" / "serve.toml"
    assert load_run(path) == RunConfig()
    stated = tomllib.loads(path.read_text())
    for section, values in stated.items():
        assert set(values) == {field.name for field in fields(getattr(RunConfig(), section))}
