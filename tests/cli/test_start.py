"""A verb that answers from tables starts at once: it loads what it needs, and no file for later."""

import os
import statistics
import subprocess
import sys
import time

import pytest

HEAVY = {"torch", "numpy", "matplotlib", "rich", "fastapi", "huggingface_hub", "zoneinfo", "importlib.resources"}
# Files of the package that none of these calls needs; each stands for a way by which all of a room was loaded.
NOT_ASKED = {"tapwater.cli.serve", "tapwater.cli.inspect", "tapwater.config.run", "tapwater.cost.training"}
SHEET = (
    "price sheet --model m --machine x --measured report --prefill 1000 --cached 9000 --decode 500 --utilisation 0.5 "
    "--usd-per-hour 16 --rent-source s --cny-per-usd 7.2 --exchange-source s --created 2026-05-06"
)


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=paths)


PLAN = "plan serve deepseek-v2 --machine h800"
TARGET = "plan target deepseek-v2-lite --machine h800 --usd-per-million 1"


@pytest.mark.parametrize(
    "call",
    ["hardware list", "hardware show h800", "price day", "price compare", "price day --json", SHEET, PLAN, TARGET],
)
def test_a_verb_loads_only_what_it_answers_from(call: str) -> None:
    script = (
        "import contextlib, sys, tapwater.cli\n"
        "with contextlib.suppress(SystemExit): tapwater.cli.main(sys.argv[1:])\n"
        "print('\\n' + ' '.join(sys.modules))"
    )
    done = run(script, *call.split())
    answer, _, loaded = done.stdout.rstrip().rpartition("\n")
    assert answer.strip(), done.stderr
    assert not (HEAVY | NOT_ASKED) & set(loaded.split())


def test_help_of_plan_loads_nothing_that_plans() -> None:
    """Help is drawn with rich, by the command line library; of ours it needs the options alone."""
    script = (
        "import contextlib, sys, tapwater.cli\n"
        "with contextlib.suppress(SystemExit): tapwater.cli.main(['plan', '--help'])\n"
        "heavy = ('tapwater.cost', 'tapwater.config', 'torch', 'numpy', 'matplotlib')\n"
        "print([name for name in sys.modules if name.startswith(heavy)])"
    )
    assert run(script).stdout.endswith("[]\n")


@pytest.mark.parametrize("room", ["tapwater.config"])
def test_a_room_has_every_name_it_exports(room: str) -> None:
    script = (
        "import importlib, sys\n"
        "room = importlib.import_module(sys.argv[1])\n"
        "assert set(room._FILE_OF) == set(room.__all__) and not hasattr(room, 'nothing')\n"
        "for name in room.__all__: getattr(room, name)"
    )
    run(script, room)


def test_a_verb_starts_in_little_more_than_its_command_line_library() -> None:
    """A ratio, since machines differ and are busy: about 2 is measured, and 4 is what rich, or more, would make it."""

    def seconds(script: str) -> float:
        start = time.perf_counter()
        run(script)
        return time.perf_counter() - start

    verb = "import contextlib, tapwater.cli\nwith contextlib.suppress(SystemExit): tapwater.cli.main(['price', 'day'])"
    pairs = [(seconds("import cyclopts"), seconds(verb)) for _ in range(5)]
    assert statistics.median(mine / library for library, mine in pairs) < 4
