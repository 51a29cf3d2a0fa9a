"""`tapwater needle`: at which lengths and depths a model finds what it was told."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from tapwater.cli.common import (
    DEFAULT_MODEL,
    ConfigFile,
    Overrides,
    console,
    load,
    model_id,
    progress_bar,
    split_overrides,
)
from tapwater.cli.output import AsJson, check_new, check_page, check_place, write_json
from tapwater.cli.text_table import text_table
from tapwater.cli.train import INTERRUPTED
from tapwater.config import load_run
from tapwater.data.replacing import replace_text
from tapwater.errors import ConfigError, DataError

if TYPE_CHECKING:
    from tapwater.evals.needle import Cell, NeedleTest

Numbers = Annotated[str, Parameter(help="Tokens of a prompt with its answer, with commas between.")]
Depths = Annotated[str, Parameter(help="Where the needle is, 0 the beginning, 1 the end; with commas between.")]


def needle(
    model: str = DEFAULT_MODEL,
    /,
    *overrides: Overrides,
    haystack: Path,
    lengths: Numbers,
    depths: Depths = "0,0.25,0.5,0.75,1",
    trials: int = 5,
    seed: int = 0,
    needle: str | None = None,
    question: str | None = None,
    form: Literal["text", "chat"] = "text",
    max_tokens: int = 16,
    output: Path | None = None,
    report: Path | None = None,
    as_json: AsJson = False,
    config: ConfigFile = None,
) -> int:
    """Hide a sentence with a number in a long text, ask for it, and count exact answers.

    Answers are greedy. A length that the model cannot hold is refused; a haystack shorter than a prompt is repeated.

    Parameters
    ----------
    model
        What is asked; pulled first when it is not on this machine.
    haystack
        A text file, or a corpus that `tapwater data build` made: its held-out documents.
    trials
        Prompts of each length and depth, with different numbers and places in the haystack.
    seed
        The same seed gives the same prompts.
    needle
        The sentence, with {key} where the number goes.
    question
        What is asked at the end.
    form
        text: the model continues haystack and question as they stand; chat: both are a message of its chat template.
    max_tokens
        Tokens of an answer.
    output
        Write JSON with every prompt's number and answer to this new file, whole after every cell.
    report
        Write a heat map to this HTML file; a page that is there is replaced, anything else is not.
    """
    model, settings = split_overrides(model, overrides)
    run_config = load_run(config, settings)
    if output is not None:
        check_new(output, "--output")
    if report is not None:
        check_place(report, "--report")
        check_page(report, "--report")
    from tapwater.evals.needle import NEEDLE, QUESTIONS, Cell, NeedleTest, run

    test = NeedleTest(
        lengths=tuple(_number(each, int, "--lengths") for each in lengths.split(",")),
        depths=tuple(_number(each, float, "--depths") for each in depths.split(",")),
        trials=trials,
        seed=seed,
        needle=NEEDLE if needle is None else needle,
        question=QUESTIONS[form] if question is None else question,
        form=form,
        max_tokens=max_tokens,
    )
    text = read_haystack(haystack)
    llm = load(model, run_config)
    cells: list[Cell] = []
    facts: dict[str, Any] = {}
    total = len(test.lengths) * len(test.depths)
    try:
        from rich.progress import MofNCompleteColumn

        with progress_bar("Asking", MofNCompleteColumn()) as progress:
            for cell in run(llm, text, test, progress):
                cells.append(cell)
                facts = _facts(model_id(model), llm.computed_by, haystack, len(text), test, cells)
                if output is not None:
                    replace_text(output, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    except KeyboardInterrupt:
        if not cells:
            raise
    finally:
        llm.close()
    if as_json:
        write_json(facts)
    else:
        sys.stdout.write(_table(test, cells))
    if len(cells) < total:
        page = "" if report is None else f"; no {report}, which is of whole tests"
        console().print(f"stopped after {len(cells)} of {total} cells{page}", markup=False, highlight=False)
        return INTERRUPTED
    if report is not None:
        from tapwater.cli.needle_report import needle_report

        report.write_text(needle_report(facts), encoding="utf-8")
    return 0


def read_haystack(path: Path) -> str:
    """The text of a file, or of a corpus's held-out documents; DataError when there is none."""
    if path.is_dir():
        from tapwater.data.corpus import Corpus
        from tapwater.text import Tokenizer

        corpus = Corpus.open(path)
        tokenizer = Tokenizer.from_directory(corpus.tokenizer_directory)
        texts = [
            tokenizer.decode(corpus.document("heldout", source, number).tolist())
            for source in corpus.sources
            for number in range(corpus.num_documents("heldout", source))
        ]
        if not texts:
            raise DataError(f"{path}: the corpus holds out no documents")
        return "\n\n".join(texts)
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--haystack: {path} is no text that can be read: {error}") from None


def _number(text: str, kind: type[int] | type[float], option: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(
            f"{option}: {text!r} is no number; write them with commas between, such as 256,1024"
        ) from None


def _table(test: "NeedleTest", cells: "list[Cell]") -> str:
    """Exact answers of each cell's; a dash for a cell that was not come to."""
    found = {(each.length, each.depth): f"{each.num_exact}/{len(each.trials)}" for each in cells}
    header = ("depth", *(f"{length:,}" for length in test.lengths), "")
    rows = [
        (f"{depth:.0%}", *(found.get((length, depth), "-") for length in test.lengths), "") for depth in test.depths
    ]
    return text_table(header, rows, "r" * (1 + len(test.lengths)))


def _facts(
    model: str, computed_by: str, haystack: Path, chars: int, test: "NeedleTest", cells: "list[Cell]"
) -> dict[str, Any]:
    return {
        "model": model,
        "computed_by": computed_by,
        "haystack": str(haystack),
        "haystack_chars": chars,
        "needle": test.needle,
        "question": test.question,
        "form": test.form,
        "trials": test.trials,
        "seed": test.seed,
        "max_tokens": test.max_tokens,
        "lengths": list(test.lengths),
        "depths": list(test.depths),
        "is_whole": len(cells) == len(test.lengths) * len(test.depths),
        "cells": [
            {
                "length": each.length,
                "depth": each.depth,
                "exact": each.share,
                "trials": [vars(trial) | {"exact": trial.is_exact} for trial in each.trials],
            }
            for each in cells
        ],
    }
