"""The `tapwater` command: one file a verb. Heavy imports happen inside the verbs, so that help comes at once."""

import io
import os
import sys
from collections.abc import Sequence

from cyclopts import App

from tapwater.cli.chat import chat
from tapwater.cli.common import console
from tapwater.cli.generate import generate
from tapwater.cli.inspect import inspect
from tapwater.cli.pull import pull
from tapwater.cli.quantize import quantize
from tapwater.cli.serve import serve
from tapwater.errors import TapwaterError

BROKEN_PIPE = 141  # as a shell reports SIGPIPE

app = App(
    name="tapwater",
    help="DeepSeek-V2-class models on the machines people already have.",
    help_epilogue="MODEL is a known name, a .gguf file, a Hugging Face directory or an owner/name repository.",
)
for verb in (serve, chat, generate, pull, quantize, inspect):
    app.command(verb)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (None: the process's own) and exit.

    A fault of the user's is one line on stderr and exit code 1, wrong usage is 2, Ctrl-C 130.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that cannot show a character must not end an answer
            stream.reconfigure(errors="backslashreplace")
    try:
        app(arguments)
        sys.stdout.flush()
    except TapwaterError as error:
        console().print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)
    except BrokenPipeError:  # whoever read our output has seen enough
        _drop_stdout()
        sys.exit(BROKEN_PIPE)
    except OSError as error:  # a full disk behind stdout, most of all
        _drop_stdout()
        console().print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


def _drop_stdout() -> None:
    """Send what is still buffered nowhere, or the interpreter complains about it as it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
