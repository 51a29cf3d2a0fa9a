"""What every benchmark says of itself: machine, commit, command; medians of several rounds; a table and a JSON file."""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from tapwater.calibration.machine import processor

RESULTS = Path(__file__).parent / "results"


def provenance() -> dict[str, str]:
    """Where and with what a figure was measured."""
    return {
        "machine": f"{processor()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
        "commit": commit(),
        "command": shlex.join(["python", *sys.argv]),
        "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }


def commit() -> str:
    """The checkout that is measured, `-dirty` if files differ from it."""
    root = Path(__file__).parent.parent
    described = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True)
    return described.stdout.strip() or "unknown"


def publish(name: str, unit: str, rounds: dict[str, list[float]]) -> None:
    """Print the median, least and greatest of each row's rounds, and write them all to bench/results/NAME.json."""
    about = provenance()
    table = Table(title=f"{name} ({unit})", caption="\n".join(f"{key}: {value}" for key, value in about.items()))
    for column in ("", "median", "min", "max", "rounds"):
        table.add_column(column, justify="left" if not column else "right")
    for row, values in rounds.items():
        shown = [f"{value:.1f}" for value in (median(values), min(values), max(values))]
        table.add_row(row, *shown, str(len(values)))
    Console().print(table)
    save(name, about | {"unit": unit, "rounds": rounds})


def save(name: str, content: Mapping[str, Any]) -> Path:
    """Write bench/results/NAME.json."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path
