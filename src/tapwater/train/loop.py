"""A whole run: from the first step or the last checkpoint to the export."""

import json
import shutil
import time
from dataclasses import dataclass
from decimal import Decimal
from math import isfinite, nan
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from tapwater.checkpoint.export import CHECKPOINTS, TOKENIZER, export
from tapwater.checkpoint.store import Store
from tapwater.checkpoint.store_manifest import list_checkpoints
from tapwater.checkpoint.train_state import random_state, restore_random_state
from tapwater.config import PretrainConfig
from tapwater.cost.counts import training_flops_per_token
from tapwater.data.batch import Batch
from tapwater.data.corpus import Corpus
from tapwater.data.loader import Loader
from tapwater.errors import CheckpointError, TrainingError
from tapwater.parallel import Pipeline, World, part_of_model, shard, sharded_names
from tapwater.train.evaluate import evaluation
from tapwater.train.heldout import Scorer
from tapwater.train.infills import Infills
from tapwater.train.interrupt import Interrupt
from tapwater.train.masters import Masters
from tapwater.train.metrics import STEPS, Evaluation, MetricsLog, StepMetrics
from tapwater.train.optim import Optimizers
from tapwater.train.probe import matmul_peak
from tapwater.train.schedule import learning_rate_share, sequences_at
from tapwater.train.setup import check_corpus, check_memory, choose_precision, seconds_of, starting_weights
from tapwater.train.spikes import SpikeDetector
from tapwater.train.state import check_same, check_settled, plain, read_settled, tensors_of
from tapwater.train.step import Step, Trained
from tapwater.train.tensorboard import TensorBoard
from tapwater.train.view import Progress, View

RUN_FILE = "run.json"
EXPORT = "export"
MINUTES_SHARE = 0.95  # of train.minutes that steps get; evaluations and checkpoints have the rest


@dataclass(frozen=True)
class Finished:
    """How a run ended: `is_interrupted` when it was asked to stop before its last step."""

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
        self._usd_per_hour = usd_per_hour
        check_corpus(config, corpus)
        began = self._began()
        self.precision = began["precision"] if began else choose_precision(config, world)
        check_memory(config, self.precision, world)

        self.model = part_of_model(config.model, world, starting_weights(config))
        self.model.recompute(config.train.recomputation)
        pipeline = None
        if config.parallel.pp > 1:
            tokens = config.batch.micro_sequences * config.data.sequence_length
            pipeline = Pipeline(self.model, world, tokens, self.precision)
            rows = {sequences_at(step, config.batch, self._per_round) for step in range(config.batch.ramp_steps + 1)}
            pipeline.check(sorted(each // self._per_round for each in rows))
        else:
            shard(self.model, world, self.precision)
        self.masters = Masters(self.model, self.precision, sharded_names(self.model))
        self.optimizers = Optimizers(self.masters.named.items(), config.optimizer)
        self.step = Step(self.model, pipeline, self.masters, self.optimizers, world, config)
        self.loader = Loader(corpus, config.data, config.train.seed)
        self.detector = SpikeDetector(config.spikes)
        self.store = Store(self.directory / CHECKPOINTS, config.checkpoint.keep_last, config.checkpoint.keep_best)
        self.scorer = Scorer(self.model, pipeline, world, config)
        self.infills = Infills(self.model, corpus, world, config)

        kind = torch.float32 if self.precision == "float32" else torch.bfloat16
        self.peak = matmul_peak(kind, config.model, config.batch.micro_sequences * config.data.sequence_length)
        self.total_steps: int = began["total_steps"] if began else self._steps()
        learning_rate_share(0, self.total_steps, config.schedule)  # refuses what cannot be scheduled
        self.number = 0  # finished steps
        self._saved: int | None = None  # of which there is a checkpoint
        self.tokens = 0
        self.elapsed_s = 0.0
        self.evaluated: Evaluation | None = None
        if began is None:
            self._begin()

    def train(self, view: View | None = None) -> Finished:
        """Go on from the newest checkpoint to the last step, then evaluate on all held-out text and export.

        `view` is shown every step instead of the run's own view.
        """
        listing = list_checkpoints(self.store.directory)
        saved = listing.latest()
        if listing.incomplete:  # saves and removals are never seen in part: it was damaged later
            back = "begin again" if saved is None else f"go on from step {saved.step}"
            raise CheckpointError(f"{listing.incomplete[0]}; remove that checkpoint to {back}")
        if saved is not None:
            self._restore(saved.step, skip_data=False)
            self._note(f"resumed at step {self.number} of {self.total_steps}")
        if view is None:
            quiet = Console(quiet=True)
            view = View(self._console if self.world.is_first else quiet, str(self.directory), every=10)
        with Interrupt() as interrupt, view:
            self._view = view
            self._log = MetricsLog(self.directory, self.number) if self.world.is_first else None
            self._board = TensorBoard(self.directory, self.number) if self.world.is_first else None
            try:
                stopped = self._steps_until_end(interrupt)
                due = not stopped and (self.evaluated is None or self.evaluated.step < self.number)
                if due and not self._evaluate(None):
                    raise TrainingError(f"step {self.number}, the last: held-out text gave no finite number")
                if self._saved != self.number:
                    self._save()
                self.store.wait()
            finally:
                if self._log is not None and self._board is not None:
                    self._log.close()
                    self._board.close()
        self.store.close()
        if not stopped:
            self._export()
        return Finished(self.number, self.total_steps, stopped, self.evaluated, self._cost(), self.elapsed_s)

    def _steps_until_end(self, interrupt: Interrupt) -> bool:
        """Whether the run was asked to stop."""
        config = self.config
        while self.number < self.total_steps:
            start = time.perf_counter()
            batch = self.loader.draw(sequences_at(self.number, config.batch, self._per_round))
            share = learning_rate_share(self.number, self.total_steps, config.schedule)
            trained = self.step.run(batch, share, self.number)
            seconds = time.perf_counter() - start
            self.elapsed_s += seconds
            self.number += 1
            self.tokens += batch.num_targets
            if self._watch(batch, trained, share, seconds):
                continue
            due = self.number % config.evaluation.every_steps == 0 and self.number < self.total_steps
            if due and not self._evaluate(config.evaluation.sequences) and self.detector.observe(self.number, nan):
                self._rewind()
                continue
            if self.number % config.checkpoint.every_steps == 0 and self.number < self.total_steps:
                self._save()
            if self._any(interrupt.asked):
                return self.number < self.total_steps
        return False

    def _watch(self, batch: Batch, trained: Trained, share: float, seconds: float) -> bool:
        """Log the step; True when it was the last of a spike and training went back."""
        losses, config = trained.losses, self.config
        loss = float(losses.total(config.train.mtp_weight))
        tokens_per_s = batch.tokens_BS.size / seconds
        load_LE = [[int(count) for count in row] for row in losses.load_LE.tolist()]
        metrics = StepMetrics(
            step=self.number,
            loss=loss,
            ce=float(losses.ce),
            expert_loss=float(losses.expert),
            device_loss=float(losses.device),
            communication_loss=float(losses.communication),
            mtp_loss=float(losses.mtp) if config.model.num_nextn_predict_layers else None,
            lr=share * config.optimizer.lr,
            grad_norm=trained.grad_norm,
            sequences=batch.tokens_BS.shape[0],
            tokens=self.tokens,
            tokens_per_s=tokens_per_s,
            mfu=self._mfu(batch, tokens_per_s),
            seconds=seconds,
            cost_usd=self._cost(),
            load_LE=load_LE,
        )
        if self._log is not None and self._board is not None:
            self._log.step(metrics)
            self._board.step(metrics)
        self._view.show(self._progress(metrics))
        if not self.detector.observe(self.number, loss if isfinite(trained.grad_norm) else nan):
            return False
        self._rewind()
        return True

    def _rewind(self) -> None:
        """Back to the newest checkpoint from before the spike; the batches since then are skipped."""
        started = self.detector.started
        spike = self.number
        self.store.wait()
        before = [each for each in self.store.listing().complete if started is None or each.step < started]
        if not before:
            raise TrainingError(
                f"step {spike}: the loss has risen and no checkpoint from before it is left; lower optimizer.lr, or "
                "raise checkpoint.keep_last"
            )
        step = before[-1].step
        elapsed_s, tokens = self.elapsed_s, self.tokens
        state = self._restore(step, skip_data=True)
        self.detector.rewind(state["detector"])
        self.elapsed_s, self.tokens = elapsed_s, tokens  # spent all the same
        self.store.rewind(step)
        if self._log is not None and self._board is not None:
            self._log.close()
            self._board.close()
            self._log, self._board = MetricsLog(self.directory, step), TensorBoard(self.directory, step)
        self._note(f"loss spike at step {spike}: back to step {step}, the batches in between are skipped")

    def _evaluate(self, sequences: int | None) -> bool:
        """Whether held-out text gave a finite number."""
        start = time.perf_counter()
        sums = self.scorer.score(self.corpus, sequences)
        exact = self.infills.exact_share()
        self.evaluated = evaluation(self.number, self.tokens, sums, exact)
        self.elapsed_s += time.perf_counter() - start
        if self._log is not None and self._board is not None:
            self._log.evaluation(self.evaluated)
            self._board.evaluation(self.evaluated)
        sources = ", ".join(f"{name} {value:.4f}" for name, value in self.evaluated.sources.items())
        infills = "" if exact is None else f"; infills exact {exact:.1%}"
        self._note(
            f"step {self.number}: held-out bits per byte {self.evaluated.bits_per_byte:.4f} ({sources}){infills}"
        )
        return isfinite(self.evaluated.bits_per_byte)

    def _save(self) -> None:
        start = time.perf_counter()
        fresh = self.evaluated is not None and self.evaluated.step == self.number
        score = self.evaluated.bits_per_byte if self.evaluated is not None and fresh else None
        facts = {
            "model": plain(self.config)["model"],
            "loader": self.loader.state(),
            "detector": self.detector.state(),
            "random": random_state(),
            "tokens": self.tokens,
            "elapsed_s": self.elapsed_s,
            "evaluation": None if self.evaluated is None else vars(self.evaluated),
        }
        self.store.save(self.number, self._tensors(), facts, score)
        self._saved = self.number
        if not self.config.checkpoint.asynchronous:
            self.store.wait()
        self.elapsed_s += time.perf_counter() - start

    def _restore(self, step: int, skip_data: bool) -> dict[str, Any]:
        facts = self.store.load(step, self._tensors())
        self.masters.publish()
        self._saved = step
        self.number, self.tokens, self.elapsed_s = step, facts["tokens"], facts["elapsed_s"]
        self.evaluated = Evaluation(**facts["evaluation"]) if facts["evaluation"] else None
        if not skip_data:
            self.loader.restore(facts["loader"])
            self.detector.restore(facts["detector"])
            restore_random_state(facts["random"])
        return facts

    def _tensors(self) -> dict[str, torch.Tensor]:
        return tensors_of(self.model, self.masters, self.optimizers.list, self.world)

    def _export(self) -> None:
        """The last step as a Hugging Face directory, replacing an earlier export of this run."""
        path = self.directory / EXPORT
        if self.world.is_first:
            shutil.rmtree(path, ignore_errors=True)
            export(self.directory, path, self.directory / TOKENIZER, "latest", torch.bfloat16)
            self._note(f"exported to {path}: tapwater serve {path}")
        self.world.barrier()

    def _began(self) -> dict[str, Any] | None:
        """What the run settled when it began; None for a new one."""
        path = self.directory / RUN_FILE
        found = None
        if self.world.is_first and path.is_file():
            found = read_settled(path)
        elif self.world.is_first:
            for name in (CHECKPOINTS, EXPORT, STEPS):
                if (self.directory / name).exists():
                    raise TrainingError(
                        f"{self.directory / name}: exists, and no {RUN_FILE} says what run it is of; choose another "
                        "train.directory or remove it"
                    )
        found = self.world.broadcast(found)
        if found is not None:
            check_same(found["config"], self.config, str(path))
            check_settled(found, self.config, str(path))
        return found

    def _begin(self) -> None:
        if not self.world.is_first:
            return
        self.directory.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self.corpus.tokenizer_directory, self.directory / TOKENIZER, dirs_exist_ok=True)
        settled = {"precision": self.precision, "total_steps": self.total_steps, "config": plain(self.config)}
        partial = self.directory / f".{RUN_FILE}.partial"
        partial.write_text(json.dumps(settled, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        partial.rename(self.directory / RUN_FILE)

    def _steps(self) -> int:
        train = self.config.train
        if train.steps is not None:
            return train.steps
        assert train.minutes is not None
        rows = self.config.batch.sequences
        loader = Loader(self.corpus, self.config.data, self.config.train.seed)

        def work() -> None:
            self.step.forward_backward(loader.draw(rows), 0)
            self.optimizers.rehearse()

        seconds = self.world.broadcast(seconds_of(work))
        self.optimizers.forget()
        return max(1, round(MINUTES_SHARE * train.minutes * 60 / seconds))

    def _mfu(self, batch: Batch, tokens_per_s: float) -> float:
        """Documents do not attend to each other: a token's work is that of its own document's length."""
        lengths = [length for row in batch.lengths for length in row]
        mean = sum(length * length for length in lengths) / sum(lengths)
        flops = training_flops_per_token(self.config.model, mean).total
        return flops * tokens_per_s / (self.peak * self.world.size)

    def _progress(self, metrics: StepMetrics) -> Progress:
        left_s = self.elapsed_s / self.number * (self.total_steps - self.number)
        total_usd = None
        if metrics.cost_usd is not None:
            total_usd = metrics.cost_usd * self.total_steps / self.number
        return Progress(
            step=self.number,
            total_steps=self.total_steps,
            loss=metrics.loss,
            lr=metrics.lr,
            grad_norm=metrics.grad_norm,
            tokens=self.tokens,
            tokens_per_s=metrics.tokens_per_s,
            elapsed_s=self.elapsed_s,
            left_s=left_s,
            mfu=metrics.mfu,
            bits_per_byte=None if self.evaluated is None else self.evaluated.bits_per_byte,
            fim_exact=None if self.evaluated is None else self.evaluated.fim_exact,
            cost_usd=metrics.cost_usd,
            total_usd=total_usd,
            load_LE=metrics.load_LE,
        )

    def _cost(self) -> Decimal | None:
        """Rent of the time steps, evaluations and checkpoints took, over all interruptions."""
        if self._usd_per_hour is None:
            return None
        return self._usd_per_hour * Decimal(round(1000 * self.elapsed_s)) / 3_600_000

    def _any(self, asked: bool) -> bool:
        return bool(self.world.sum_all(torch.tensor(float(asked))) > 0)

    def _note(self, text: str) -> None:
        if self.world.is_first:
            self._view.note(text) if hasattr(self, "_view") else self._console.print(text, highlight=False)

    @property
    def _per_round(self) -> int:
        return self.config.batch.micro_sequences * self.config.parallel.dp
