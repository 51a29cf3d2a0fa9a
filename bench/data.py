"""Megabytes of source text a second that one core cleans: each stage alone, then all of `clean`, and its memory.

    python bench/data.py [TREE ...] [--megabytes N]

Without a TREE: Python's standard library and the installed packages. When there is less than N megabytes, files are
taken again with every eighth line's words renamed, so that copies are not near-duplicates. Seconds are those of the
process's own processor time: a benchmark beside it slows it through caches and memory, not through waiting.
"""

import re
import resource
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from pathlib import Path

import cyclopts
import numpy as np

from tapwater.config.corpus import (
    CorpusConfig,
    DecontaminationSection,
    DuplicatesSection,
    FilterSection,
    SourceSection,
    TokenizerSection,
)
from tapwater.data.clean import clean
from tapwater.data.decontamination import Decontamination
from tapwater.data.document import Document
from tapwater.data.duplicates import DuplicateIndex
from tapwater.data.filters import judge
from tapwater.data.normalise import normalise_all
from tapwater.data.readers import read
from tapwater.data.spool import Spool, read_spool
from tapwater.data.tally import Tally
from tapwater.data.words import hash_words
from tapwater.errors import TapwaterError

BATCH_BYTES = 2**20
STAGE_BYTES = 8 * 2**20
SUFFIXES = (".py", ".pyi", ".c", ".h", ".cpp", ".js")

app = cyclopts.App(help=__doc__)


@app.default
def main(*trees: str, megabytes: int = 300, rounds: int = 3) -> None:
    """Measure on TREEs."""
    paths = trees or tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib"))
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as directory:  # not in /tmp: that may be memory
        work = Path(directory)
        num_bytes = make_tree(paths, work / "tree", megabytes * 10**6)
        evaluation = work / "evaluation.txt"
        words = [each.text.split()[::-1] for each in documents((str(work / "tree"),), 10**6)]
        evaluation.write_text("\n".join(map(" ".join, words)))  # backwards: it costs as much and drops nothing
        speed = {"clean": [whole(work, num_bytes, evaluation) for _ in range(rounds)]}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        for _ in range(rounds):
            for name, value in stages(work, evaluation).items():
                speed.setdefault(name, []).append(value)
    from report import provenance, publish, save  # it brings torch, which is not of the memory measured

    publish("data", "MB/s of one core", speed)
    print(f"text {num_bytes / 1e6:.0f} MB, peak RSS of clean {peak / 1e6:.0f} MB")
    save("data", provenance() | {"unit": "MB/s", "rounds": speed, "text_bytes": num_bytes, "peak_rss_bytes": peak})


def documents(paths: tuple[str, ...], limit: int | None) -> Iterator[Document]:
    source = SourceSection("bench", "source", paths, "unknown", include=SUFFIXES, limit_bytes=limit)
    return read(source, 10**6, 0, Tally())


def make_tree(paths: tuple[str, ...], tree: Path, num_bytes: int) -> int:
    """Write at least `num_bytes` of text; returns how many."""
    written = 0
    for copy in count():
        for number, document in enumerate(documents(paths, None)):
            path = tree / str(copy) / str(number // 1000) / f"{number}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            text = renamed(document.text, copy) if copy else document.text
            path.write_bytes(text.encode())
            written += len(text)
            if written >= num_bytes:
                return written
    raise AssertionError


def renamed(text: str, copy: int) -> str:
    lines = text.split("\n")
    for number in range(copy % 8, len(lines), 8):
        lines[number] = re.sub(r"\b([a-z]\w+)\b", rf"\1_{copy}", lines[number])
    return "\n".join(lines)


def whole(work: Path, num_bytes: int, evaluation: Path) -> float:
    source = SourceSection("bench", "source", (str(work / "tree"),), "unknown", include=SUFFIXES)
    files = DecontaminationSection(files=(str(evaluation),))
    tokenizer = TokenizerSection(vocab_size=8192)
    config = CorpusConfig(str(work / "corpus"), (source,), tokenizer, decontamination=files)
    start = time.process_time()
    cleaned = clean(config, lambda *_: None)
    seconds = time.process_time() - start
    cleaned.remove()
    for reason, each in cleaned.tally.counts["bench"].items():
        print(f"{reason:20} {each.num_documents:8} documents {each.num_bytes / 1e6:8.1f} MB")
    return num_bytes / seconds / 1e6


def stages(work: Path, evaluation: Path) -> dict[str, float]:
    """Each on the same documents in memory, in the order of the pipeline."""
    speed: dict[str, float] = {}

    def timed(name: str, run: Callable[[], object]) -> object:
        start = time.process_time()
        result = run()
        speed[name] = num_bytes / (time.process_time() - start) / 1e6
        return result

    tree = (str(work / "tree"),)
    raw = list(documents(tree, STAGE_BYTES))
    num_bytes = sum(each.num_bytes for each in raw)
    timed("read", lambda: list(documents(tree, STAGE_BYTES)))
    ends = np.searchsorted(np.cumsum([each.num_bytes for each in raw]), np.arange(BATCH_BYTES, num_bytes, BATCH_BYTES))
    cuts = [slice(start, end) for start, end in pairwise([0, *ends.tolist(), len(raw)])]
    texts, utf8 = normalise_all([each.text for each in raw])
    timed("normalise", lambda: [normalise_all([each.text for each in raw[cut]]) for cut in cuts])
    limits = FilterSection()
    timed("filters", lambda: [judge(texts[cut], utf8[cut], ["python"] * len(texts[cut]), limits) for cut in cuts])
    batches = [utf8[cut] for cut in cuts]
    words = [hash_words(batch) for batch in batches]
    timed("words", lambda: [hash_words(batch) for batch in batches])
    decontamination = Decontamination(DecontaminationSection(files=(str(evaluation),)))
    timed("decontamination", lambda: [decontamination.contaminated(each) for each in words])
    stage = Path(tempfile.mkdtemp(dir=work))
    with DuplicateIndex(stage, DuplicatesSection()) as index:
        timed("duplicates: keys", lambda: [index.add(*each) for each in zip(batches, words, strict=True)])
    timed("duplicates: sort", lambda: index.fates(lambda *_: None))
    with Spool(stage / "spool.zst") as spool:
        timed("spool", lambda: [spool.write(*each) for each in zip(raw, utf8, strict=True)])
    timed("read spool", lambda: sum(1 for _ in read_spool(stage / "spool.zst")))
    return speed


if __name__ == "__main__":
    try:
        app()
    except TapwaterError as error:
        sys.exit(f"error: {error}")
