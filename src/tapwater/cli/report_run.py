"""`tapwater report`: the page about a training run."""

import json
from pathlib import Path

from tapwater.cli.common import console
from tapwater.cli.output import check_page


def report(run: Path, /, *, corpus: Path | None = None) -> None:
    """Write report.html into a run's directory: losses, held-out text, experts, speed and cost so far.

    It can be asked for while the run goes on; `tapwater train` writes it at the end.

    Parameters
    ----------
    run
        The directory of a run.
    corpus
        The corpus whose baselines the model is held against; without it the one the run was told, if it is still there.
    """
    from tapwater.cli.train_report import write_training_report

    check_page(run / "report.html", "report")
    path = write_training_report(run, _own_corpus(run) if corpus is None else corpus)
    console().print(f"report: {path}", markup=False, highlight=False, soft_wrap=True)


def _own_corpus(run: Path) -> Path | None:
    from tapwater.data.corpus import Corpus
    from tapwater.train.settled import RUN_FILE

    path = run / RUN_FILE
    if not path.is_file():
        return None
    settled = json.loads(path.read_text(encoding="utf-8"))
    found = Path(settled["config"]["data"]["corpus"])
    if not found.is_dir():  # it may have moved since
        return None
    fingerprint = Corpus.open(found).fingerprint
    return found if settled.get("corpus", fingerprint) == fingerprint else None  # older runs say only the place
