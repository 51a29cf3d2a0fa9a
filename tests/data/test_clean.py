"""The whole first half: every document is kept or counted, twice the same, in bounded work files."""

import errno
import random
from pathlib import Path

import pytest

from tapwater.config.corpus import CorpusConfig, DecontaminationSection, SourceSection, TokenizerSection
from tapwater.data.clean import Cleaned, clean
from tapwater.data.document import Document
from tapwater.data.spool import Spool, read_spool
from tapwater.errors import DataError

NOUNS = "river mountain winter garden letter window yellow silver market doctor engine paper summer people water"


def essay(seed: int) -> str:
    chance = random.Random(seed)
    return "\n".join(
        " ".join(chance.choices(NOUNS.split(), k=12)) + f" in {seed} and the rest of it." for _ in range(12)
    )


def config(tmp_path: Path, **fields: object) -> CorpusConfig:
    sources = tuple(
        SourceSection(name, "text", (str(tmp_path / name),), "CC0-1.0", languages=("en",)) for name in ("one", "two")
    )
    return CorpusConfig(str(tmp_path / "corpus"), sources, TokenizerSection(vocab_size=8192), **fields)  # type: ignore[arg-type]


def write(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    texts = {
        "one/a": essay(1),
        "one/b": essay(2) + "\r\n\r\n",
        "one/short": "Too short.",
        "one/german": "Der Fluss fließt langsam durch das Land, und viele Menschen leben dort seit langer Zeit.\n" * 1
        + "Im Winter ist es kalt, aber im Sommer kommen die Leute aus der Stadt zum Baden her.",
        "one/question": essay(3) + "\n" + " ".join(f"secret{n}" for n in range(13)),
        "two/a": essay(2),
        "two/b": essay(1).replace("rest", "most", 1),
        "two/c": essay(4),
        "two/empty": "",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_bytes(text.encode())
    (tmp_path / "eval.txt").write_text(" ".join(f"secret{n}" for n in range(13)))


def names(cleaned: Cleaned) -> list[str]:
    return [f"{each.source}/{each.name}" for each in cleaned]


def test_everything_is_kept_or_counted(tmp_path: Path) -> None:
    write(tmp_path)
    build = config(tmp_path, decontamination=DecontaminationSection(files=(str(tmp_path / "eval.txt"),)))
    seen: list[str] = []
    cleaned = clean(build, lambda stage, *_: seen.append(stage))
    assert names(cleaned) == names(cleaned) == ["one/a.txt", "one/b.txt", "two/c.txt"]
    assert next(iter(cleaned)) == Document(essay(1), "one", "a.txt", "CC0-1.0", "en")
    counts = {
        f"{source} {reason}": count for source, row in cleaned.tally.counts.items() for reason, count in row.items()
    }
    assert {key: count.num_documents for key, count in counts.items()} == {
        "one kept": 2,
        "one too_short": 1,
        "one language": 1,
        "one contaminated": 1,
        "two exact_duplicate": 1,
        "two near_duplicate": 1,
        "two kept": 1,
        "two empty_file": 1,
    }
    assert counts["one kept"].num_bytes == len(essay(1)) + len(essay(2))
    assert counts["one too_short"].samples[0].excerpt == "Too short."
    assert cleaned.tally.licences == {"one": {"CC0-1.0": len(essay(1) + essay(2))}, "two": {"CC0-1.0": len(essay(4))}}
    assert set(seen) == {"read", "duplicates"}
    cleaned.remove()
    assert not list((tmp_path / "corpus.partial").iterdir())


def test_work_of_a_stopped_build_is_thrown_away(tmp_path: Path) -> None:
    write(tmp_path)
    stale = tmp_path / "corpus.partial" / "work"
    stale.mkdir(parents=True)
    (stale / "documents.zst").write_bytes(b"half")
    assert names(clean(config(tmp_path), lambda *_: None))[0] == "one/a.txt"


def test_a_path_that_is_not_there_is_said_before_anything_is_read(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "two").rename(tmp_path / "three")

    def read(*_: object) -> None:
        raise AssertionError

    with pytest.raises(DataError, match=r"source two: .*two: no such file or directory"):
        clean(config(tmp_path), read)


def test_a_source_of_which_nothing_is_left_is_an_error(tmp_path: Path) -> None:
    write(tmp_path)
    for name in ("a", "b", "c"):
        (tmp_path / "two" / f"{name}.txt").write_text("short")
    with pytest.raises(DataError, match=r"source two: nothing is left of it: .*3 too_short"):
        clean(config(tmp_path), lambda *_: None)


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Spool, "write", full)
    with pytest.raises(DataError, match=r"corpus\.partial/work: no space left"):
        clean(config(tmp_path), lambda *_: None)


def test_a_spool_gives_back_what_was_written(tmp_path: Path) -> None:
    documents = [Document(text, "s", "a\nb", "MIT", "en") for text in ("", "one\n\ntwo", "三" * 100_000)]
    with Spool(tmp_path / "s.zst") as spool:
        for document in documents:
            spool.write(document, document.text.encode())
    assert list(read_spool(tmp_path / "s.zst")) == documents
    packed = (tmp_path / "s.zst").read_bytes()
    (tmp_path / "s.zst").write_bytes(packed[:-9])
    with pytest.raises(DataError, match="damaged or cut off"):
        list(read_spool(tmp_path / "s.zst"))
