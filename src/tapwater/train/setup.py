"""What is settled before the first step: that the run can be, in which arithmetic, and how long it is."""

import time
from collections.abc import Callable
from statistics import median

import torch

from tapwater.config import ModelConfig, PretrainConfig, replace_fields
from tapwater.data.corpus import Corpus
from tapwater.data.heldout import heldout_rows
from tapwater.data.loader import Loader
from tapwater.errors import ConfigError
from tapwater.model import Sequences, Transformer
from tapwater.parallel import World
from tapwater.train.loss import Rows, losses_of
from tapwater.train.masters import Masters
from tapwater.train.memory import check_trial, fits
from tapwater.train.probe import PRECISIONS, Precision, fastest_precision
from tapwater.train.step import Step

MINUTES_SHARE = 0.95  # of train.minutes that steps get; evaluations and checkpoints have the rest
TIMING_SHARE, LONGEST_TIMING_S, FEWEST_TIMED = 0.01, 60.0, 3  # of train.minutes; steps timed before the first
TRIAL_LAYERS = 2  # of the model that precisions are tried on, besides dense ones before the first experts


def check_corpus(config: PretrainConfig, corpus: Corpus) -> None:
    """ConfigError unless the model has a row for every token of the corpus, and its BOS and EOS.

    Raises it too, or DataError, when there is no held-out text that an evaluation could take.
    """
    manifest, model = corpus.manifest, config.model
    if model.vocab_size < manifest.vocab_size:
        raise ConfigError(
            f"model: vocab_size {model.vocab_size} is less than the {manifest.vocab_size} tokens of {corpus.path}"
        )
    eos = model.eos_token_id if isinstance(model.eos_token_id, tuple) else (model.eos_token_id,)
    for name, own, theirs in (
        ("bos_token_id", (model.bos_token_id,), manifest.bos_token_id),
        ("eos_token_id", eos, manifest.eos_token_id),
    ):
        if theirs not in own:
            raise ConfigError(f"model: {name} is {own[0]}, documents of {corpus.path} have {theirs}; set it to that")
    sources = [source for source in corpus.sources if corpus.num_documents("heldout", source)]
    if not sources:
        raise ConfigError(f"evaluation: {corpus.path} has no held-out documents; build it with some")
    for source in sources:
        next(heldout_rows(corpus, source, config.data.sequence_length, config.evaluation.sequences))


def choose_precision(config: PretrainConfig, world: World) -> Precision:
    """The precision asked for; `auto` is bf16 on a GPU, on a CPU whichever takes less time in a few layers.

    One that does not fit into memory is not chosen. Raises ConfigError when those layers do not fit.
    """
    asked = config.train.precision
    if asked != "auto":
        return asked
    if world.device.type == "cuda":
        return "bf16"
    fitting = [precision for precision in PRECISIONS if fits(config, precision, world)]
    if len(fitting) < len(PRECISIONS):  # of none, whoever checks the choice says so
        return world.broadcast(fitting[0] if fitting else "bf16")
    layers = min(config.model.num_hidden_layers, config.model.first_k_dense_replace + TRIAL_LAYERS)
    small = replace_fields(config.model, {"num_hidden_layers": layers, "num_nextn_predict_layers": 0}, "trial")
    chosen = None
    if world.is_first:  # alone: what it takes meanwhile is not free for the others
        check_trial(small, config)
        chosen = _faster(small, config)
    return world.broadcast(chosen)


def _faster(small: ModelConfig, config: PretrainConfig) -> Precision:
    size = config.data.sequence_length
    total = size * config.batch.micro_sequences
    tokens_T = torch.randint(0, small.vocab_size, (total,), generator=torch.Generator().manual_seed(0))
    rows = Rows(tokens_T, tokens_T, torch.ones(total, dtype=torch.bool), Sequences((size,) * (total // size)), None)
    models = {precision: _trial_model(small, precision) for precision in ("float32", "bf16")}

    def run_step(precision: Precision) -> None:
        model, masters = models[precision]
        losses_of(model, rows, total, 1.0).ce.backward()
        masters.take_gradients()
        for parameter in masters.named.values():
            parameter.grad = None

    return fastest_precision(run_step).fastest


def _trial_model(config: ModelConfig, precision: Precision) -> tuple[Transformer, Masters]:
    model = Transformer.random(config, 0)
    return model, Masters(model, precision)


def num_steps(config: PretrainConfig, corpus: Corpus, step: Step, world: World) -> int:
    """train.steps, or how many steps train.minutes are worth: `step` is timed and left as it was."""
    train = config.train
    if train.steps is not None:
        return train.steps
    assert train.minutes is not None
    loader = Loader(corpus, config.data, train.seed)

    def work() -> None:
        step.forward_backward(loader.draw(config.batch.sequences), 0)
        step.optimizers.rehearse()

    (first,) = world.broadcast(times_of(work, 1))
    timing_s = min(TIMING_SHARE * train.minutes * 60, LONGEST_TIMING_S)
    rounds = max(FEWEST_TIMED, int(timing_s / first))  # the same in every process
    seconds = world.broadcast(median(times_of(work, rounds)))
    step.optimizers.forget()
    return max(1, round(MINUTES_SHARE * train.minutes * 60 / seconds))


def times_of(work: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of so many calls, after one to warm up."""
    work()
    times: list[float] = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times
