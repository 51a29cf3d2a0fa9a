"""A whole run: from the first step or the last checkpoint to the export."""

import shutil
import time
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite, nan
from pathlib import Path

import torch
from rich.console import Console

from tapwater.checkpoint.export import CHECKPOINTS, TOKENIZER, export
from tapwater.checkpoint.store import Store
from tapwater.checkpoint.train_state import random_state, restore_random_state
from tapwater.config import PretrainConfig
from tapwater.data.corpus import Corpus
from tapwater.data.loader import Loader
from tapwater.errors import CheckpointError, DivergedError, TrainingError
from tapwater.parallel import World
from tapwater.train.build import build_step
from tapwater.train.clock import Clock
from tapwater.train.evaluate import evaluation
from tapwater.train.heldout import Scorer
from tapwater.train.infills import Infills
from tapwater.train.interrupt import Interrupt
from tapwater.train.measure import Meter
from tapwater.train.memory import check_memory
from tapwater.train.metrics import Evaluation, StepMetrics
from tapwater.train.probe import matmul_peak
from tapwater.train.record import Record
from tapwater.train.saves import Saves
from tapwater.train.schedule import learning_rate_share, rows_per_round, sequences_at
from tapwater.train.settled import EXPORT, Settled, begin, settled_before
from tapwater.train.setup import check_corpus, choose_precision, num_steps
from tapwater.train.spikes import SpikeDetector
from tapwater.train.state import Moment
from tapwater.train.view import View


@dataclass(frozen=True)
class Finished:
    """How a run ended: `is_interrupted` when it was asked to stop before its last step.

    Time and cost are of everything from when it was made to the end of its export, over all interruptions.
    """

    step: int
    total_steps: int
    is_interrupted: bool
    evaluation: Evaluation | None
    cost_usd: Decimal | None
    elapsed_s: float


class Run:
    """A run in its directory; every process of `world` makes one and calls `train`."""

    def __init__(
        self, config: PretrainConfig, corpus: Corpus, world: World, console: Console, usd_per_hour: Decimal | None
    ) -> None:
        self.config, self.corpus, self.world, self._console = config, corpus, world, console
        self.directory = Path(config.train.directory)
        self.clock = Clock(self.directory, usd_per_hour)
        check_corpus(config, corpus)
        before = settled_before(config, corpus, world)
        self.precision = before.precision if before else choose_precision(config, world)
        check_memory(config, self.precision, world)

        self.step = build_step(config, self.precision, world)
        self.model = self.step.model
        self.loader = Loader(corpus, config.data, config.train.seed)
        self.detector = SpikeDetector(config.spikes)
        self.store = Store(self.directory / CHECKPOINTS, config.checkpoint.keep_last, config.checkpoint.keep_best)
        self.saves = Saves(self.store, self.step, world, config)
        self.scorer = Scorer(self.model, self.step.pipeline, world, config)
        self.infills = Infills(self.model, corpus, config)

        kind = torch.float32 if self.precision == "float32" else torch.bfloat16
        rows = config.batch.micro_sequences * config.data.sequence_length
        peak = matmul_peak(kind, config.model, rows, world.device)
        self.meter = Meter(config, peak * world.size, self.clock)
        with (console if world.is_first else Console(quiet=True)).status("how long a step takes"):
            self.total_steps = before.total_steps if before else num_steps(config, corpus, self.step, world)
        learning_rate_share(0, self.total_steps, config.schedule)  # refuses what cannot be scheduled
        self.number = 0  # finished steps
        self.tokens = 0
        self.evaluated: Evaluation | None = None
        self._sample: tuple[int, float] | None = None  # a step and its score
        if before is None and world.is_first:
            begin(Settled(self.precision, self.total_steps), config, corpus)

    def train(self, view: View | None = None) -> Finished:
        """Go on from the newest checkpoint to the last step, then evaluate on all held-out text and export.

        `view` is shown every step instead of the run's own view.
        """
        world = self.world
        if view is None:
            console = self._console if world.is_first else Console(quiet=True)
            view = View(console, str(self.directory), every=10)
        try:
            self._resume(view)
            record = Record(self.directory, self.number, self.total_steps, view, self.clock, world.is_first)
            with Interrupt() as interrupt, view, record:
                stopped = self._steps_until_end(interrupt, record)
                if not stopped:
                    self._evaluate_all(record)
                if self.saves.newest != self.number:
                    self._save(in_haste=stopped)
                self.store.wait()
            self.store.close()
            if not stopped:
                self._export(view)
        except BaseException:
            # what ended the run says more than that its last save, or its cost, could not be kept either
            with suppress(CheckpointError):
                self.store.close()
            with suppress(TrainingError):
                self._keep_spent()
            raise
        self._keep_spent()
        spent = self.clock.spent()
        return Finished(self.number, self.total_steps, stopped, self.evaluated, spent.cost_usd, spent.elapsed_s)

    def _keep_spent(self) -> None:
        if self.world.is_first:
            self.clock.keep()

    def _resume(self, view: View) -> None:
        moment = self.saves.resume()
        if moment is None:
            return
        self.number, self.tokens, self.evaluated = moment.step, moment.tokens, moment.evaluation
        self.loader.restore(moment.loader)
        self.detector.restore(moment.detector)
        restore_random_state(moment.random)
        self.clock.count_before(moment.elapsed_s)
        view.note(f"resumed at step {self.number} of {self.total_steps}")

    def _steps_until_end(self, interrupt: Interrupt, record: Record) -> bool:
        """Whether the run was asked to stop."""
        config = self.config
        while self.number < self.total_steps:
            metrics = self._take_step()
            record.step(metrics, self.evaluated)
            spiked = self.detector.observe(self.number, metrics.loss if isfinite(metrics.grad_norm) else nan)
            if not spiked and self._is_due(config.evaluation.every_steps):
                is_number = self._evaluate(record, config.evaluation.sequences)
                spiked = not is_number and self.detector.observe(self.number, nan)
            saves = self._is_due(config.checkpoint.every_steps)
            if not spiked and saves and config.checkpoint.keep_best and not isfinite(self._score()):
                spiked = self.detector.observe(self.number, nan)
            if spiked:
                self._rewind(record)
                continue
            if saves:
                self._save()
            if self._any(interrupt.asked):
                return self.number < self.total_steps
        return False

    def _is_due(self, every_steps: int) -> bool:
        return self.number % every_steps == 0 and self.number < self.total_steps

    def _take_step(self) -> StepMetrics:
        config, start = self.config, time.perf_counter()
        batch = self.loader.draw(sequences_at(self.number, config.batch, rows_per_round(config)))
        share = learning_rate_share(self.number, self.total_steps, config.schedule)
        trained = self.step.run(batch, share, self.number)
        seconds = time.perf_counter() - start
        self.number += 1
        self.tokens += batch.num_targets
        return self.meter.step(self.number, self.tokens, batch, trained, share, seconds)

    def _rewind(self, record: Record) -> None:
        """Back to the newest checkpoint from before the spike; the batches since then are skipped."""
        spike = self.number
        found = self.saves.go_back(self.detector.started)
        if found is None:
            raise TrainingError(
                f"step {spike}: the loss has risen and no checkpoint from before it is left; lower optimizer.lr, or "
                "raise checkpoint.keep_last"
            )
        self.detector.rewind(found.detector)
        self.number, self.evaluated = found.step, found.evaluation  # tokens were read all the same
        self._sample = None
        self.saves.settle_rewind(self._now())
        why = f"loss spike at step {spike}: back to step {self.number}, the batches in between are skipped"
        record.back_to(self.number, why)

    def _evaluate(self, record: Record, sequences: int | None) -> bool:
        """Whether held-out text gave a finite number."""
        sums = self.scorer.score(self.corpus, sequences)
        tried = self.infills.try_all()
        self.evaluated = evaluation(self.number, self.tokens, sums, tried.exact, tried.exact_spm)
        if sequences is not None:
            self._sample = self.number, self.evaluated.bits_per_byte
        record.evaluation(self.evaluated, tried.filled)
        return isfinite(self.evaluated.bits_per_byte)

    def _evaluate_all(self, record: Record) -> None:
        if self.evaluated is not None and self.evaluated.step == self.number:  # resumed after it
            return
        if not self._evaluate(record, None):
            raise DivergedError(f"step {self.number}, the last: held-out text gave no finite number")

    def _save(self, in_haste: bool = False) -> None:
        """With its score where the best is kept, but for a run that was told to stop and has none yet."""
        is_known = self._sample is not None and self._sample[0] == self.number
        score = self._score() if self.config.checkpoint.keep_best and (is_known or not in_haste) else nan
        self.saves.save(self._now(), score if isfinite(score) else None)

    def _score(self) -> float:
        """Bits per byte of the rows that evaluations on the way take, at the last step too: only such compare."""
        if self._sample is None or self._sample[0] != self.number:
            sums = self.scorer.score(self.corpus, self.config.evaluation.sequences)
            self._sample = self.number, evaluation(self.number, self.tokens, sums).bits_per_byte
        return self._sample[1]

    def _now(self) -> Moment:
        elapsed_s, states = self.clock.spent().elapsed_s, (self.loader.state(), self.detector.state(), random_state())
        return Moment(self.number, self.tokens, elapsed_s, self.evaluated, *states)

    def _export(self, view: View) -> None:
        """The last step as a Hugging Face directory, replacing an earlier export of this run; others do not wait."""
        path = self.directory / EXPORT
        if self.world.is_first:
            shutil.rmtree(path, ignore_errors=True)
            export(self.directory, path, self.directory / TOKENIZER, "latest", torch.bfloat16)
            view.note(f"exported to {path}: tapwater serve {path}")

    def _any(self, asked: bool) -> bool:
        return bool(self.world.sum_all(torch.tensor(float(asked))) > 0)
