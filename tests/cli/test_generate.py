"""What `tapwater generate` prints and refuses, with a scripted model."""

import importlib
import io
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from tapwater.cli import main
from tapwater.engine.request import FinishReason, SamplingParams
from tapwater.llm import Delta, Usage

verb = importlib.import_module("tapwater.cli.generate")  # the package's own name `generate` is the function


@dataclass
class ScriptedLLM:
    asked: list[tuple[str | list[int], SamplingParams, tuple[str, ...]]] = field(default_factory=list)
    closed: bool = False

    def encode_infill(self, prefix: str, suffix: str, *, suffix_first: bool) -> list[int]:
        return [len(prefix), len(suffix), int(suffix_first)]

    def stream(self, prompt: str | list[int], params: SamplingParams, stop: Sequence[str]) -> Iterator[Delta]:
        self.asked.append((prompt, params, tuple(stop)))
        yield Delta(" one", (1,), (), None, Usage(3, 1, 0))
        yield Delta("\n  zwölf", (2,), (), FinishReason.LENGTH, Usage(3, 2, 0))

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch) -> ScriptedLLM:
    scripted = ScriptedLLM()
    monkeypatch.setattr(verb, "load", lambda model, run: scripted)
    return scripted


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exited:
        main(["generate", *arguments])
    return int(exited.value.code or 0)


def test_only_the_completion_is_on_stdout(llm: ScriptedLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--prompt", "- a list") == 0
    out, err = capsys.readouterr()
    assert out == " one\n  zwölf\n"
    assert "2 tokens" in err
    assert "ended by length" in err
    assert llm.asked == [("- a list", SamplingParams(max_tokens=256), ())]
    assert llm.closed


def test_a_suffix_makes_the_prompt_of_an_infill(llm: ScriptedLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--prompt", "ab", "--suffix", "- b") == 0
    assert run("--prompt", "ab", "--suffix", "", "--suffix-first") == 0
    assert [prompt for prompt, _, _ in llm.asked] == [[2, 3, 0], [2, 0, 1]]
    assert run("--prompt", "ab", "--suffix-first") == 1
    assert "--suffix-first needs --suffix" in capsys.readouterr().err and len(llm.asked) == 2


def test_options_reach_the_engine(llm: ScriptedLLM) -> None:
    options = {"max-tokens": "5", "temperature": "0.5", "top-p": "0.9", "seed": "-3", "stop": "END"}
    assert (
        run("--prompt", "x", "--stop", "\n", *(part for name in options for part in (f"--{name}", options[name]))) == 0
    )
    ((_, params, stop),) = llm.asked
    assert params == SamplingParams(max_tokens=5, temperature=0.5, top_p=0.9, seed=-3)
    assert stop == ("\n", "END")


def test_json_is_one_object(llm: ScriptedLLM, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--prompt", "x", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result.pop("seconds") >= 0
    assert result == {
        "text": " one\n  zwölf",
        "finish_reason": "length",
        "prompt_tokens": 3,
        "completion_tokens": 2,
    }


def test_standard_input_is_taken_exactly(llm: ScriptedLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"zwei\r\nZeilen\n")))
    assert run("--prompt", "-") == 0
    assert llm.asked[0][0] == "zwei\r\nZeilen\n"


def test_standard_input_that_is_no_text(
    llm: ScriptedLLM, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9")))
    assert run("--prompt", "-") == 1
    assert "not UTF-8 text" in capsys.readouterr().err
    assert llm.asked == []
