"""The `tapwater` command: one file a verb, imported when it is asked for. Heavy imports happen inside the verbs."""

import io
import os
import sys
from collections.abc import Sequence

from cyclopts import App

from tapwater.errors import TapwaterError

BROKEN_PIPE = 141  # as a shell reports SIGPIPE

app = App(
    name="tapwater",
    help="DeepSeek-V2-class models on the machines people already have.",
    help_format="plaintext",  # Markdown would load a parser of it, and of its code blocks
    help_epilogue="MODEL is a known name, a .gguf file, a Hugging Face directory or an owner/name repository.",
)
for verb in (
    *("serve", "chat", "generate", "pull", "quantize", "data", "train", "export", "ablate", "needle", "inspect"),
    *("hardware", "plan", "price"),
):
    app.command(f"tapwater.cli.{verb}:{verb}")
app.command("tapwater.cli.report_run:report")


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
        _print_error(error)
        sys.exit(1)
    except BrokenPipeError:  # whoever read our output has seen enough
        _drop_stdout()
        sys.exit(BROKEN_PIPE)
    except OSError as error:  # a full disk behind stdout, most of all
        _drop_stdout()
        _print_error(error)
        sys.exit(1)


def _print_error(error: Exception) -> None:
    from tapwater.cli.common import console

    console().print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)


def _drop_stdout() -> None:
    """Send what is still buffered nowhere, or the interpreter complains about it as it exits."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
