"""Licences of installed Python packages, from the metadata each of them carries."""

import csv
from collections.abc import Sequence
from importlib.metadata import PackageMetadata, distributions
from pathlib import Path

UNKNOWN = "unknown"
_LONGEST_NAME = 60  # the field License often holds the whole text


def file_licences(paths: Sequence[str]) -> dict[str, str]:
    """Absolute path -> licence of every file that a package installed under one of these directories lists.

    A package whose metadata is not UTF-8 is left out.
    """
    licences: dict[str, str] = {}
    for path in paths:
        directory = Path(path).absolute()
        if not any(directory.glob("*.dist-info")):
            continue
        for distribution in distributions(path=[str(directory)]):
            try:
                licence = licence_of(distribution.metadata)
                record = (distribution.read_text("RECORD") or "").splitlines()  # `.files` makes slow objects of it
            except UnicodeDecodeError:  # of an old package: what its files say, nobody can read
                continue
            licences |= {f"{directory}/{row[0]}": licence for row in csv.reader(record) if row}
    return licences


def licence_of(metadata: PackageMetadata) -> str:
    """License-Expression (SPDX), else a License of one short line, else the classifiers, else "unknown"."""
    fields = [metadata.get_all(key) for key in ("License-Expression", "License")]
    expression, name = (str(values[0]).strip() if values else "" for values in fields)
    if expression:
        return expression
    if name and name.upper() != "UNKNOWN" and "\n" not in name and len(name) <= _LONGEST_NAME:
        return name
    classifiers = metadata.get_all("Classifier") or []
    names = [each.rpartition(" :: ")[2] for each in classifiers if each.startswith("License ::")]
    return " AND ".join(names) or UNKNOWN
