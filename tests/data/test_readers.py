"""Every kind of source against files that others' writers made, and every kind of bad file."""

import gzip
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from tapwater.config.corpus import SourceSection
from tapwater.data.document import Document
from tapwater.data.readers import read
from tapwater.data.tally import Tally
from tapwater.errors import ConfigError, DataError

ROWS = [{"text": "one\ntwo"}, {"text": "三四"}, {"text": ""}]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def documents(path: Path | str, kind: str, tally: Tally | None = None, **fields: object) -> list[Document]:
    source = SourceSection("s", kind, (str(path),), "MIT", **fields)  # type: ignore[arg-type]
    return list(read(source, 1000, 0, tally or Tally()))


def dropped(tally: Tally) -> dict[str, int]:
    return {reason: count.num_documents for reason, count in tally.counts["s"].items()}


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gz", "zst"])
def test_jsonl_packed_or_not(tmp_path: Path, pack: object) -> None:
    suffix = {bytes: "", gzip.compress: ".gz", zstandard.compress: ".zst"}[pack]  # type: ignore[index]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(pack(JSONL))  # type: ignore[operator]
    found = documents(tmp_path, "jsonl")
    assert [each.text for each in found] == [row["text"] for row in ROWS]
    assert found[1].name == f"a.jsonl{suffix}:2"


def test_zstandard_frames_one_after_another(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(JSONL) + zstandard.compress(JSONL))
    assert len(documents(tmp_path, "jsonl")) == 6


@pytest.mark.parametrize(("suffix", "pack"), [(".gz", gzip.compress), (".zst", zstandard.compress)])
@pytest.mark.parametrize("left", [0.5, 0.97])
def test_packed_files_that_break_off_are_errors(tmp_path: Path, suffix: str, pack: object, left: float) -> None:
    packed = pack(b"".join(json.dumps({"text": str(n**9)}).encode() + b"\n" for n in range(999)))  # type: ignore[operator]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(packed[: int(left * len(packed))])
    with pytest.raises(DataError, match=rf"a\.jsonl\{suffix}: damaged or cut off"):
        documents(tmp_path, "jsonl")


@pytest.mark.parametrize(
    ("line", "words"),
    [(b'{"text": ', "line 2: not JSON"), (b"[1]", "line 2: no text in the field"), (b'{"a": "b"}', "no text in")],
)
def test_bad_lines_are_named(tmp_path: Path, line: bytes, words: str) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(DataError, match=rf"a\.jsonl, {words}" if "line" in words else words):
        documents(tmp_path, "jsonl")


def test_a_row_too_long_for_memory_is_counted_and_the_next_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    long = json.dumps({"text": "x" * 250}).encode()
    exact = json.dumps({"text": "y" * (100 - 13)}).encode() + b"\n"
    monkeypatch.setattr("tapwater.data.readers.LONGEST_ROW", len(exact))
    (tmp_path / "a.jsonl").write_bytes(exact + long + b"\n" + exact + long)
    tally = Tally()
    found = documents(tmp_path, "jsonl", tally)
    assert [each.name for each in found] == ["a.jsonl:1", "a.jsonl:3"]
    assert dropped(tally) == {"too_long": 2}
    assert tally.counts["s"]["too_long"].num_bytes == 2 * len(long) + 1


def test_half_a_surrogate_pair_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a\\ud800"}\n{"text": "\\ud83d\\ude00"}\n')
    tally = Tally()
    assert [each.text for each in documents(tmp_path, "jsonl", tally)] == ["😀"]
    assert dropped(tally) == {"not_utf8": 1}


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt")).write_text("text")
    assert [each.name for each in documents(tmp_path, "text", limit_bytes=99)] == ["\ufffd.txt"]


def test_parquet_row_groups_and_nulls(tmp_path: Path) -> None:
    texts = [f"row {number}" for number in range(1000)] + [None]
    table = pyarrow.table({"body": texts, "other": list(range(1001))})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=300, compression="zstd")
    tally = Tally()
    found = documents(tmp_path, "parquet", tally, text_field="body")
    assert [each.text for each in found] == texts[:-1]
    assert dropped(tally) == {"empty_row": 1}
    with pytest.raises(DataError, match="no column 'text'; it has body, other"):
        documents(tmp_path, "parquet")
    with pytest.raises(DataError, match="column 'other' is no text"):
        documents(tmp_path, "parquet", text_field="other")
    (tmp_path / "a.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="not a readable parquet file"):
        documents(tmp_path, "parquet")


def test_source_trees_count_what_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "good.py").write_text("x = 'ü'\n", encoding="utf-8")
    (tmp_path / "latin.py").write_bytes("x = 'ü'".encode("latin-1"))
    (tmp_path / "binary.py").write_bytes(b"\x7fELF\0\0")
    (tmp_path / "empty.py").write_bytes(b"")
    (tmp_path / "long.py").write_bytes(b"x" * 4001)
    (tmp_path / "link.py").symlink_to(tmp_path / "nowhere.py")
    (tmp_path / "skipped.bin").write_bytes(b"\0")
    (tmp_path / "deep" / "left.py").write_text("out")
    tally = Tally()
    found = documents(tmp_path, "source", tally, exclude=("deep/left*",))
    assert [(each.name, each.text, each.language) for each in found] == [("deep/er/good.py", "x = 'ü'\n", "python")]
    reasons = ("not_utf8", "binary_file", "empty_file", "too_long", "not_a_file")
    assert dropped(tally) == dict.fromkeys(reasons, 1)


def test_missing_unreadable_and_fruitless_sources(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"source s: .*nowhere: no such file or directory"):
        documents(tmp_path / "nowhere", "text")
    with pytest.raises(DataError, match=r"no document in .* suffix"):
        documents(tmp_path, "text")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match="1 empty_file"):
        documents(tmp_path, "text")


def test_unreadable_file_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("text")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")  # root may read everything: chmod proves nothing

    monkeypatch.setattr("os.open", refuse)
    with pytest.raises(DataError, match=r"a\.txt: cannot be read: Permission denied"):
        documents(tmp_path, "text")


def test_limited_sources_draw_files_by_the_seed(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"{number:02d}.txt").write_text("x" * 10)
    draws = []
    for seed in (0, 0, 1):
        source = SourceSection("s", "text", (str(tmp_path),), "MIT", limit_bytes=105)
        draws.append([each.name for each in read(source, 1000, seed, Tally())])
    assert [len(draw) for draw in draws] == [10, 10, 10]
    assert draws[0] == draws[1] != draws[2]


def test_licences_come_from_the_packages(tmp_path: Path) -> None:
    for package, field in (
        ("a", "License-Expression: MIT"),
        ("b", "Classifier: License :: OSI Approved :: BSD License"),
    ):
        (tmp_path / package).mkdir()
        (tmp_path / package / "code.py").write_text("pass")
        info = tmp_path / f"{package}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {package}\nVersion: 1\n{field}\n")
        (info / "RECORD").write_text(f"{package}/code.py,,\n")
    (tmp_path / "stray.py").write_text("pass")
    source = SourceSection("s", "source", (str(tmp_path),), "unknown")
    licences = {each.name: each.licence for each in read(source, 1000, 0, Tally())}
    assert licences == {"a/code.py": "MIT", "b/code.py": "BSD License", "stray.py": "unknown"}


def test_debian_documentation(tmp_path: Path) -> None:
    package = tmp_path / "doc" / "tool"
    package.mkdir(parents=True)
    (package / "README.gz").write_bytes(gzip.compress(b"Read me."))
    (package / "changelog.Debian.gz").write_bytes(gzip.compress(b"no"))
    (package / "copyright").write_text("Format: x\n\nFiles: a\nLicense: MIT\n\nFiles: *\nLicense: GPL-2+\n text\n")
    found = documents(tmp_path / "doc", "doc")
    assert [(each.text, each.licence) for each in found] == [("Read me.", "GPL-2+")]


def test_a_limit_below_the_first_document_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" * 20)
    with pytest.raises(DataError, match=r"limit_bytes 10 is less than its first document, a\.txt of 20 bytes"):
        documents(tmp_path, "text", limit_bytes=10)


def test_a_package_with_unreadable_metadata_has_the_licence_of_the_source(tmp_path: Path) -> None:
    for name, author in (("old", b"Andr\xe9"), ("new", "André".encode())):
        (tmp_path / f"{name}.py").write_text("x = 1\n")
        information = tmp_path / f"{name}-1.dist-info"
        information.mkdir()
        information.joinpath("METADATA").write_bytes(b"License-Expression: MPL-2.0\nAuthor: " + author + b"\n")
        information.joinpath("RECORD").write_text(f"{name}.py,,\n")
    assert {each.name: each.licence for each in documents(tmp_path, "source")} == {"old.py": "MIT", "new.py": "MPL-2.0"}


def test_trimmed_python_says_what_went(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('"""One.\n\nTwo.\n"""\nx = 1\n')
    (tmp_path / "b.py").write_text("print 1\n")
    (tmp_path / "c.sh").write_text("# one\n# two\n# three\n")
    (tmp_path / "d.py").write_text("y = 2\n")
    tally = Tally()
    found = documents(tmp_path, "source", tally, python_prose="trim")
    assert [each.text for each in found] == ['"""One."""\nx = 1\n', "# one\n# two\n# three\n", "y = 2\n"]
    assert dropped(tally) == {"prose": 1, "not_python": 1}
    assert [each.name for each in tally.counts["s"]["prose"].samples] == ["a.py"]
    assert "Two." in tally.counts["s"]["prose"].samples[0].excerpt
    assert documents(tmp_path, "source")[0].text == '"""One.\n\nTwo.\n"""\nx = 1\n'


def test_only_program_text_is_trimmed() -> None:
    with pytest.raises(ConfigError, match=r'python_prose = "trim" is for kind "source", not .text'):
        SourceSection("s", "text", ("x",), "MIT", python_prose="trim")
    with pytest.raises(ConfigError, match=r"needs \.py or \.pyi in include"):
        SourceSection("s", "source", ("x",), "MIT", include=(".c",), python_prose="trim")
