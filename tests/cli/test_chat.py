"""The terminal conversation, with a scripted model and a scripted user."""

import importlib
import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pytest

from tapwater.cli import main
from tapwater.engine.request import FinishReason, SamplingParams
from tapwater.errors import RequestError
from tapwater.llm import Delta, Usage

verb = importlib.import_module("tapwater.cli.chat")  # the package's own name `chat` is the function


@dataclass
class ScriptedLLM:
    """Answers with the pieces of `script`, one list an answer; an exception among them is raised."""

    script: list[list[str | BaseException]]
    asked: list[list[tuple[str, str]]] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        self.asked.append([(message["role"], message["content"]) for message in messages])
        return [1]

    def stream(self, prompt: Sequence[int], params: SamplingParams) -> Iterator[Delta]:
        pieces = self.script.pop(0)
        try:
            for number, piece in enumerate(pieces, start=1):
                if isinstance(piece, BaseException):
                    raise piece
                reason = FinishReason.STOP if number == len(pieces) else None
                yield Delta(piece, (number,), (), reason, Usage(1, number, 0))
        finally:
            self.closed.append("stream")

    def close(self) -> None:
        self.closed.append("llm")


Talk = Callable[..., tuple[str, str]]


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    """Run `tapwater chat` with these lines typed; what went to stdout and to stderr."""

    def talk(llm: ScriptedLLM, *lines: str, **options: str) -> tuple[str, str]:
        monkeypatch.setattr(verb, "load", lambda model, run: llm)
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        verb.chat(**options)
        return capsys.readouterr()

    return talk


def test_the_conversation_grows_and_is_forgotten(talk: Talk) -> None:
    llm = ScriptedLLM([["Hel", "lo."], ["Again."], ["New."]])
    out, err = talk(llm, "Hi", "  ", "More", "/reset", "Who?", "/exit", "never", system="Be kind.")
    system = ("system", "Be kind.")
    assert llm.asked == [
        [system, ("user", "Hi")],
        [system, ("user", "Hi"), ("assistant", "Hello."), ("user", "More")],
        [system, ("user", "Who?")],
    ]
    assert out == "Hello.\nAgain.\nNew.\n"
    assert "2 tokens" in err
    assert llm.closed[-1] == "llm"


def test_unknown_commands_are_not_sent(talk: Talk) -> None:
    llm = ScriptedLLM([])
    _, err = talk(llm, "/quit", "/[red]x")
    assert llm.asked == []
    assert "There is no command /quit" in err
    assert "/[red]x" in err


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(talk: Talk) -> None:
    llm = ScriptedLLM([["One ", "two ", KeyboardInterrupt()], ["Go on."]])
    out, err = talk(llm, "Count", "Next")
    assert out == "One two \nGo on.\n"
    assert "stopped" in err
    assert llm.asked[1][1] == ("assistant", "One two ")
    assert llm.closed == ["stream", "stream", "llm"]


def test_a_refused_question_leaves_the_conversation_as_it_was(talk: Talk) -> None:
    llm = ScriptedLLM([["Hello."], [RequestError("the prompt has 9000 tokens")], ["Fine."]])
    _, err = talk(llm, "Hi", "too long", "short")
    assert "error: the prompt has 9000 tokens" in err
    assert llm.asked[2] == [("user", "Hi"), ("assistant", "Hello."), ("user", "short")]


def test_answers_cannot_command_the_terminal(talk: Talk) -> None:
    llm = ScriptedLLM([["a\x1b[2J\x07b\tc\n", "é💧"]])
    out, _ = talk(llm, "Hi")
    assert out == "a\ufffd[2J\ufffdb\tc\né💧\n"


def test_ctrl_c_at_the_prompt_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = ScriptedLLM([])
    monkeypatch.setattr(verb, "load", lambda model, run: llm)

    def interrupted(prompt: str) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("builtins.input", interrupted)
    with pytest.raises(SystemExit) as exited:
        main(["chat"])
    assert exited.value.code == 130
    assert llm.closed == ["llm"]
