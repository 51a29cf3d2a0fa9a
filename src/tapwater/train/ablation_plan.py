"""How long each variant of an ablation runs: settled once, and kept, so that an ablation that goes on is the same."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console

from tapwater.config import PretrainConfig, read_json
from tapwater.config.ablation import AblationConfig, Equal, Variant
from tapwater.config.pretrain import BatchSection
from tapwater.cost.counts import mtp_training_flops_per_token, training_flops_per_token
from tapwater.data.corpus import Corpus
from tapwater.data.loader import Loader
from tapwater.errors import ConfigError, TapwaterError, TrainingError
from tapwater.parallel import World
from tapwater.train.loop import Run
from tapwater.train.memory import check_memory
from tapwater.train.probe import Precision
from tapwater.train.schedule import learning_rate_share, sequences_at
from tapwater.train.settled import check_same, plain, settled_before
from tapwater.train.setup import check_corpus, choose_precision, times_of

PLAN_FILE = "plan.json"
SAMPLED_ROWS = 256  # of which the lengths of documents are taken
TIMED_STEPS = 4
MOST_AMISS = 0.1  # of the budget, which whole steps can only come near
# A run alone may change these when it goes on; speeds and costs that are compared may not.
COMPUTED = (("train", "recomputation"), ("batch", "micro_sequences"))


@dataclass(frozen=True)
class Planned:
    """A variant that knows how long it runs; `step_s` is measured where time is what is equal."""

    name: str
    config: PretrainConfig  # train.steps, train.precision and one process among them
    flops_per_token: float
    step_s: float | None
    budget_share: float  # that its whole steps come to, by `flops_per_token` or `step_s`

    def run(self, directory: Path, seed: int) -> PretrainConfig:
        """The config of its run number `seed`, from 0."""
        train = self.config.train
        where = run_directory(directory, self.name, seed)
        return replace(self.config, train=replace(train, directory=str(where), seed=train.seed + seed))


@dataclass(frozen=True)
class Plan:
    """`amount` is what each run may spend: training FLOPs or seconds of its steps."""

    equal: Equal
    amount: float
    precision: Precision
    corpus: str  # its fingerprint
    variants: tuple[Planned, ...]


def run_directory(directory: Path, name: str, seed: int) -> Path:
    return directory / name / f"seed-{seed}"


def planned_before(directory: Path) -> frozenset[str]:
    """Names of the variants that the plan in an ablation's directory has; none where there is no plan."""
    path = directory / PLAN_FILE
    return frozenset(_read(path)["variants"]) if path.is_file() else frozenset()


def settle(ablation: AblationConfig, chosen: Sequence[Variant], corpus: Corpus, world: World) -> Plan:
    """The plan of the chosen variants: read from the ablation's directory, where others may be added to it.

    Raises TrainingError when the directory holds an ablation or runs of other settings, naming them, and ConfigError
    for a variant or a seed that could not be trained: before anything is written.
    """
    path = Path(ablation.budget.directory) / PLAN_FILE
    for variant in chosen:
        check_corpus(variant.config, corpus)
    saved = _read(path) if path.is_file() else _begun(ablation, corpus, world)
    asked = _asked(ablation, corpus)
    changed = [name for name in asked if asked[name] != saved["asked"].get(name)]
    if changed:
        raise TrainingError(
            f"{path}: the ablation began with another {' and '.join(changed)}; choose another directory for a new one"
        )
    planned = [_planned(variant, saved, corpus, world, str(path)) for variant in chosen]
    for each in planned:
        for seed in range(ablation.budget.seeds):
            with _named(f"{each.name}, seed {seed}"):
                settled_before(each.run(path.parent, seed), corpus, world)
    _write(path, saved)
    return Plan(ablation.budget.equal, saved["amount"], saved["precision"], corpus.fingerprint, tuple(planned))


def mean_length(config: PretrainConfig, corpus: Corpus) -> float:
    """The tokens of a token's own piece of document, itself among them: nothing else is attended to."""
    batch = Loader(corpus, config.data, config.train.seed).draw(SAMPLED_ROWS)
    lengths = [length for row in batch.lengths for length in row]
    return sum(length * length for length in lengths) / sum(lengths)


def flops_per_token(config: PretrainConfig, corpus: Corpus) -> float:
    """Training FLOPs of the weights a token uses, and of its attention; multi-token prediction among them."""
    length = mean_length(config, corpus)
    main = training_flops_per_token(config.model, length).total
    return main + mtp_training_flops_per_token(config.model, length).total


def steps_for(tokens: float, batch: BatchSection, sequence_length: int) -> int:
    """The number of steps that read about so many tokens, at least one."""
    left = tokens / sequence_length
    for step in range(batch.ramp_steps):
        if left <= 0:
            return step
        left -= sequences_at(step, batch, batch.micro_sequences)
    return max(1, batch.ramp_steps + round(left / batch.sequences))


def tokens_of(steps: int, batch: BatchSection, sequence_length: int) -> int:
    """Tokens that so many steps read."""
    return sequence_length * sum(sequences_at(step, batch, batch.micro_sequences) for step in range(steps))


def seconds_per_step(config: PretrainConfig, corpus: Corpus, world: World) -> float:
    """The least time of a few whole steps of a run that is thrown away."""
    with TemporaryDirectory() as directory:
        train = replace(config.train, directory=directory, steps=2**40, minutes=None)
        run = Run(replace(config, train=train), corpus, world, Console(quiet=True), None)
        return min(times_of(lambda: run.step.run(run.loader.draw(config.batch.sequences), 0.0, 0), TIMED_STEPS))


def _asked(ablation: AblationConfig, corpus: Corpus) -> dict[str, Any]:
    budget = ablation.budget
    spent = {"flops": budget.flops, "minutes": budget.minutes, "steps of the base": budget.steps}
    alike = {"train.seed": ablation.base.train.seed, "threads": torch.get_num_threads(), "corpus": corpus.fingerprint}
    return {"equal": budget.equal, **spent, **alike}


def _begun(ablation: AblationConfig, corpus: Corpus, world: World) -> dict[str, Any]:
    """Precision and amount, which are measured on the base where they must be: then they hold for all variants."""
    check_corpus(ablation.base, corpus)
    precision = choose_precision(ablation.base, world)
    base = _prepared(ablation.base, precision)
    asked, budget = _asked(ablation, corpus), ablation.budget
    if budget.flops is not None:
        amount = budget.flops
    elif budget.minutes is not None:
        amount = 60 * budget.minutes
    else:
        assert budget.steps is not None
        tokens = tokens_of(budget.steps, base.batch, base.data.sequence_length)
        if budget.equal == "active_flops":
            amount = tokens * flops_per_token(base, corpus)
        else:
            whole_step = base.batch.sequences * base.data.sequence_length
            amount = tokens / whole_step * seconds_per_step(base, corpus, world)
    return {"asked": asked, "amount": amount, "precision": precision, "variants": {}}


def _planned(variant: Variant, saved: dict[str, Any], corpus: Corpus, world: World, where: str) -> Planned:
    """A variant that `saved` has, or that is added to it."""
    config = _prepared(variant.config, saved["precision"])
    known = saved["variants"].get(variant.name)
    is_new = known is None
    if known is None:
        is_timed = saved["asked"]["equal"] == "wall_clock"
        with _named(f"variant {variant.name}"):
            step_s = seconds_per_step(config, corpus, world) if is_timed else None
        known = {"flops_per_token": flops_per_token(config, corpus), "step_s": step_s, "config": plain(config)}
    batch, length = config.batch, config.data.sequence_length
    if known["step_s"] is None:
        tokens = saved["amount"] / known["flops_per_token"]
    else:
        tokens = saved["amount"] / known["step_s"] * batch.sequences * length
    if is_new:
        known["steps"] = steps_for(tokens, batch, length)
        saved["variants"][variant.name] = known
    share = tokens_of(known["steps"], batch, length) / tokens
    if is_new:
        with _named(f"variant {variant.name}"):
            _check(config, known["steps"], share, world)
    where = f"{where}: variant {variant.name}"
    check_same(known["config"], config, where)
    own = plain(config)
    changed = [f"{part}.{key}" for part, key in COMPUTED if own[part][key] != known["config"][part][key]]
    if changed:
        raise TrainingError(f"{where}: speeds are compared, so {' and '.join(changed)} must stay as the ablation began")
    timed = replace(config, train=replace(config.train, steps=known["steps"], minutes=None))
    return Planned(variant.name, timed, known["flops_per_token"], known["step_s"], share)


def _check(config: PretrainConfig, steps: int, share: float, world: World) -> None:
    """ConfigError for what its run would refuse in its turn, and for steps too coarse for the budget."""
    if abs(share - 1) > MOST_AMISS:
        raise ConfigError(f"whole steps ({steps}) come to {share:.0%} of the budget; give more steps, flops or minutes")
    learning_rate_share(0, steps, config.schedule)
    precision = config.train.precision
    assert precision != "auto"
    check_memory(config, precision, world)


@contextmanager
def _named(what: str) -> Iterator[None]:
    """Say of a refusal what it is about."""
    try:
        yield
    except TapwaterError as error:
        error.args = (f"{what}: {error}",)
        raise


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except ConfigError as error:
        raise TrainingError(f"{error}; put it back as it was, or choose another directory") from None
    variants = found.get("variants")
    is_plan = {"asked", "amount", "precision"} <= found.keys() and isinstance(variants, dict)
    needed = {"steps", "flops_per_token", "step_s", "config"}
    if not is_plan or not all(isinstance(each, dict) and needed <= each.keys() for each in variants.values()):
        raise TrainingError(f"{path}: is no plan of an ablation; put it back as it was, or choose another directory")
    return found


def _prepared(config: PretrainConfig, precision: Precision) -> PretrainConfig:
    return replace(config, train=replace(config.train, precision=precision))


def _write(path: Path, saved: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(saved, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.rename(path)
