"""`tapwater chat`: talk to a model in the terminal."""

import contextlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from tapwater.cli.common import DEFAULT_MODEL, ConfigFile, Overrides, console, load, split_overrides
from tapwater.cli.speed import Stopwatch
from tapwater.config import load_run
from tapwater.errors import RequestError

if TYPE_CHECKING:
    from tapwater.engine import SamplingParams
    from tapwater.llm import LLM

COMMANDS = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


def chat(
    model: str = DEFAULT_MODEL,
    /,
    *overrides: Overrides,
    system: str | None = None,
    temperature: float = 1.0,
    max_tokens: int | None = None,
    seed: int | None = None,
    config: ConfigFile = None,
) -> None:
    """Talk to a model in the terminal.

    Answers go to stdout, all else to stderr.

    Parameters
    ----------
    model
        Whom to talk to; pulled first when it is not on this machine.
    system
        A system prompt for the whole conversation.
    temperature
        0 always takes the likeliest token.
    max_tokens
        The most tokens of one answer; without it what the context holds.
    seed
        Makes the draws repeatable.
    """
    model, settings = split_overrides(model, overrides)
    run = load_run(config, settings)
    from tapwater.engine import SamplingParams

    params = SamplingParams(max_tokens=max_tokens, temperature=temperature, seed=seed)
    llm = load(model, run)
    try:
        opening = [] if system is None else [{"role": "system", "content": system}]
        out = console()
        out.print(f"Talking to {model}. {COMMANDS}.", style="dim", markup=False, highlight=False)
        _converse(llm, params, opening, out)
    finally:
        llm.close()


def _converse(llm: "LLM", params: "SamplingParams", opening: Sequence[dict[str, str]], out: Console) -> None:
    messages = list(opening)
    while (line := _read_line()) is not None:
        match line.strip():
            case "":
                continue
            case "/exit":
                return
            case "/reset":
                messages = list(opening)
                out.print("Forgotten.", style="dim")
                continue
            case command if command.startswith("/"):
                out.print(f"There is no command {command}: {COMMANDS}.", style="yellow", markup=False, highlight=False)
                continue
            case question:
                messages.append({"role": "user", "content": question})
        try:
            messages.append({"role": "assistant", "content": _answer(llm, params, messages, out)})
        except RequestError as error:  # too long, most likely: the conversation stands as it was before
            messages.pop()
            out.print(f"error: {error}", style="red", markup=False, highlight=False)


def _read_line() -> str | None:
    """The next line of the user's, None at the end of input."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401 - gives input() editing and history
    try:
        return input("\n> " if sys.stdin.isatty() else "")
    except EOFError:
        return None
    except UnicodeDecodeError as error:
        raise RequestError(f"standard input is not UTF-8 text: {error}") from None


def _answer(llm: "LLM", params: "SamplingParams", messages: Sequence[dict[str, str]], out: Console) -> str:
    """Print the answer as it comes and return it; Ctrl-C returns what there is of it."""
    watch = Stopwatch()
    answer = ""
    note = ""
    deltas = llm.stream(llm.encode_chat(messages), params)
    try:
        for delta in deltas:
            watch.tick(delta.usage.completion_tokens)
            answer += delta.text
            sys.stdout.write(_printable(delta.text))
            sys.stdout.flush()
        if delta.finish_reason == "length":
            note = " · cut at the token limit"
    except KeyboardInterrupt:
        note = " · stopped"
    finally:
        deltas.close()
    sys.stdout.write("\n")
    out.print(watch.summary + note, style="dim", highlight=False)
    return answer


def _printable(text: str) -> str:
    """Control characters would command the terminal instead of being read."""
    return "".join(char if char.isprintable() or char in "\n\t" else "\ufffd" for char in text)
