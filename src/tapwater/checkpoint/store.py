"""Checkpoints of training: sharded, hashed, written beside training, and either whole or not there at all."""

import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from math import isfinite
from pathlib import Path
from typing import Any

from torch import Tensor

from tapwater.checkpoint import store_manifest as files
from tapwater.checkpoint.store_manifest import Listing, Manifest, Saved, StoredFile
from tapwater.checkpoint.store_shards import METADATA_FILE, read_shards, shard_files, stage, write_shards
from tapwater.errors import CheckpointError
from tapwater.parallel.together import Together

log = logging.getLogger(__name__)


class Store:
    """The checkpoints of a run, one directory a step; see store_manifest.py for what is in it.

    Every process of the run makes one at the same point and calls the same methods in the same order; the directory
    is shared by all. Tensors that differ between processes must be DTensors or have names of their own: plain ones of
    one name are taken for copies, and one of them is written.

    Kept are the newest `keep_last` and, with `keep_best`, the one of the lowest score.
    """

    def __init__(self, directory: Path, keep_last: int, keep_best: bool, together: Together | None = None) -> None:
        if keep_last < 1:
            raise ValueError(f"keep_last must be at least 1, got {keep_last}")
        self.directory = directory
        self._keep_last, self._keep_best = keep_last, keep_best
        self._together = together or Together()
        self._thread = ThreadPoolExecutor(1, "checkpoint")  # joined at exit: an interrupted program ends what it writes
        self._pending: Future[None] | None = None

    def save(self, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], score: float | None) -> None:
        """Copy `tensors` and begin to write them; training may change them as soon as this returns.

        `facts` are plain JSON, and those of the first process count. Waits for the save before this one, whose failure
        it raises as `wait` does; then nothing of this one is written.
        """
        if step < 0:
            raise ValueError(f"step must be at least 0, got {step}")
        if score is not None and not isfinite(score):
            raise ValueError(f"score must be a finite number, got {score}")
        text = files.plain_json(facts)
        self.wait()
        self._pending = self._thread.submit(self._write, step, stage(tensors), text, score)

    def wait(self) -> None:
        """Return once the last save is complete; raises CheckpointError, in every process, if it failed."""
        pending = self._pending
        if pending is not None:
            try:
                pending.result()
            finally:
                if pending.done():  # not when the wait itself was interrupted
                    self._pending = None

    def close(self) -> None:
        """Wait, and end the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def listing(self) -> Listing:
        """What is there once the last save is complete; what is no checkpoint is logged too."""
        self.wait()
        found = files.list_checkpoints(self.directory)
        for reason in found.incomplete:
            log.warning("not a checkpoint: %s", reason)
        return found

    def latest(self) -> Saved | None:
        return self.listing().latest()

    def best(self) -> Saved | None:
        """The complete checkpoint of the lowest score; None when none was scored."""
        return self.listing().best()

    def load(self, step: int, into: Mapping[str, Tensor]) -> dict[str, Any]:
        """Fill the tensors of `into`, whatever the mesh they are on, and return the facts.

        Every file is hashed first, each by one of the processes. Raises CheckpointError, in every process, for a step
        that is not there, a file that is missing or damaged (naming both hashes), and for names, shapes or dtypes
        other than those saved. Names up to the first dot are sections: each is asked for whole or not at all.
        """
        self.wait()
        path, together = files.step_path(self.directory, step), self._together

        def check() -> dict[str, Any]:
            if not path.is_dir():
                raise CheckpointError(f"{path}: no such checkpoint; there are steps {self._steps()}")
            manifest = files.read_manifest(path)
            mine = sorted(manifest.files)[together.rank :: together.size]
            files.verify(path, manifest, {*mine, METADATA_FILE, files.FACTS_FILE} & manifest.files.keys())
            return files.read_facts(path)

        facts = together.run(check)[together.rank]
        read_shards(path, into, together)
        return facts

    def rewind(self, step: int) -> None:
        """Remove every checkpoint after `step`: training goes on from there, and they are of no past it has."""
        newer = [saved for saved in self.listing().complete if saved.step > step]
        # newest first: interrupted, what is left is still the past of the run
        self._together.run(lambda: self._remove([saved.path for saved in reversed(newer)]))

    def _steps(self) -> str:
        steps = [str(saved.step) for saved in files.list_checkpoints(self.directory).complete]
        return ", ".join(steps) or "none"

    def _write(self, step: int, tensors: dict[str, Tensor], facts: str, score: float | None) -> None:
        """In the thread. Each part ends in all processes before the next begins in any."""
        together, path = self._together, files.step_path(self.directory, step)
        partial = path.with_name(path.name + files.PARTIAL)
        try:
            together.run(lambda: self._begin(path, partial, facts))
            write_shards(partial, tensors, together)
            written = together.run(lambda: _hashed(shard_files(partial, together.rank)))
            hashes = {name: file for each in written for name, file in each.items()}
            together.run(lambda: self._finish(step, path, partial, hashes, score))
        except Exception as error:  # a process that was killed ends the collectives of the others
            raise CheckpointError(f"{path}: was not saved: {error}; what was saved before it is kept") from error
        finally:
            if together.is_first:
                shutil.rmtree(partial, ignore_errors=True)
        try:
            together.run(self._remove_old)
        except Exception as error:
            raise CheckpointError(f"{path}: is saved, but older ones were not removed: {error}") from error

    def _begin(self, path: Path, partial: Path, facts: str) -> None:
        if not self._together.is_first:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        for left in files.leftovers(self.directory):
            shutil.rmtree(left)
        if files.list_checkpoints(self.directory).at(int(path.name.removeprefix("step-"))) is not None:
            raise CheckpointError(f"{path}: is saved already; a run that went back rewinds its checkpoints first")
        partial.mkdir()
        files.write_synced(partial / files.FACTS_FILE, facts)

    def _finish(self, step: int, path: Path, partial: Path, hashes: dict[str, StoredFile], score: float | None) -> None:
        """The manifest, then the name: before it the checkpoint does not exist, after it it is whole."""
        if not self._together.is_first:
            return
        own = _hashed([partial / METADATA_FILE, partial / files.FACTS_FILE])
        files.write_manifest(partial, Manifest(files.FORMAT_VERSION, step, score, dict(sorted((hashes | own).items()))))
        self._remove([path] if path.exists() else [])  # of the same step, but incomplete
        partial.rename(path)
        files.sync_directory(self.directory)

    def _remove_old(self) -> None:
        found = files.list_checkpoints(self.directory)
        best = found.best() if self._keep_best else None
        self._remove([saved.path for saved in found.complete[: -self._keep_last] if saved != best])

    def _remove(self, paths: list[Path]) -> None:
        """First the name, in one step, so that no checkpoint is ever there in part."""
        if not self._together.is_first:
            return
        for path in paths:
            removed = path.with_name(path.name + files.REMOVED)
            path.rename(removed)
            shutil.rmtree(removed)


def _hashed(paths: list[Path]) -> dict[str, StoredFile]:
    return {path.name: files.stored_file(path) for path in paths}
