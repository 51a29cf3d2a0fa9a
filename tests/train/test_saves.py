"""Going back after a loss spike, and being killed soon after: the run goes on from there, and not into the spike."""

from collections.abc import Callable
from math import nan
from pathlib import Path

import pytest
import torch

from tapwater.checkpoint import load_hf
from tapwater.checkpoint.store_manifest import list_checkpoints
from tapwater.data.batch import Batch
from tapwater.data.corpus import Corpus
from tapwater.data.loader import Loader
from tapwater.errors import CheckpointError
from tapwater.train.loop import Run
from tapwater.train.metrics import read_steps
from training import make_config, make_corpus, make_run

SPIKES = {"window": 2, "deviations": 6.0, "patience": 2}
EVERY_TWO = {"every_steps": 2, "asynchronous": False}
STEPS = 6
BAD_STEP = 4  # whose text damages the weights: saved with them, seen to be a spike a step later, back to step 2


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "built")


@pytest.fixture(scope="module")
def whole(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has gone back and was never killed."""
    directory = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tapwater.train.loop.matmul_peak", lambda *_: 1e10)
        run = poisoned(corpus, directory)
        assert run.train().step == STEPS and run.detector.num_rewinds == 1
    return directory


def poisoned(corpus: Corpus, directory: Path) -> Run:
    """A run whose text of the fourth step damages the weights, whenever it is met."""
    brief = {"train": {"steps": STEPS}, "evaluation": {"sequences": 1}}
    config = make_config(corpus, directory, spikes=SPIKES, checkpoint=EVERY_TWO, **brief)
    run = make_run(config, corpus)
    step, loader = run.step.run, Loader(corpus, config.data, config.train.seed)
    bad = [loader.draw(4).tokens_BS.tobytes() for _ in range(BAD_STEP)][-1]

    def with_poison(batch: Batch, share: float, number: int):
        if batch.tokens_BS.tobytes() == bad:
            with torch.no_grad():
                run.model.lm_head.weight *= 100
        return step(batch, share, number)

    run.step.run = with_poison
    return run


def kill_in_removal(run: Run) -> None:
    """Before the checkpoint with damaged weights is gone."""

    def killed(step: int) -> None:
        raise Killed

    run.store.rewind = killed


def kill_in_step(run: Run) -> None:
    """In the first step after the rewind."""
    step = run.step.run

    def killed(*arguments: object):
        if run.detector.num_rewinds:
            raise Killed
        return step(*arguments)

    run.step.run = killed


def kill_after_a_checkpoint(run: Run) -> None:
    """When the run has gone on to a checkpoint of its own."""
    step = run.step.run

    def killed(*arguments: object):
        if run.detector.num_rewinds and run.number == 5:
            raise Killed
        return step(*arguments)

    run.step.run = killed


def curve(directory: Path) -> list[object]:
    return [[line[name] for name in ("step", "loss", "grad_norm", "tokens")] for line in read_steps(directory)]


@pytest.mark.parametrize(
    "kill", [kill_in_removal, kill_in_step, pytest.param(kill_after_a_checkpoint, marks=pytest.mark.slow)]
)
def test_a_rewind_outlives_the_process(kill: Callable[[Run], None], whole: Path, corpus: Corpus, tmp_path: Path):
    run = poisoned(corpus, tmp_path)
    kill(run)
    with pytest.raises(Killed):
        run.train()
    run = poisoned(corpus, tmp_path)
    steps: list[int] = []
    step = run.step.run
    run.step.run = lambda batch, share, number: (steps.append(number), step(batch, share, number))[1]
    assert run.train().step == STEPS and run.detector.num_rewinds == 1
    assert steps == list(range(4 if kill is kill_after_a_checkpoint else 2, STEPS))  # nothing is done twice

    assert curve(tmp_path) == curve(whole)
    expected = load_hf(whole / "export").state_dict()
    for name, weight in load_hf(tmp_path / "export").state_dict().items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize("text", ['{"step": 2', "[]", '{"step": "2"}', '{"step": 2, "detector": {}}'])
def test_a_damaged_record_of_a_rewind_is_an_error(text: str, corpus: Corpus, tmp_path: Path):
    run = poisoned(corpus, tmp_path)
    kill_in_step(run)
    with pytest.raises(Killed):
        run.train()
    (tmp_path / "checkpoints" / "rewound.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"rewound\.json.* remove it to go on from the newest checkpoint"):
        poisoned(corpus, tmp_path).train()


def test_a_rewind_goes_with_its_checkpoint(corpus: Corpus, tmp_path: Path):
    """Another checkpoint of the same step has another past: what was recorded for the first is not for it."""
    run = poisoned(corpus, tmp_path)
    kill_in_step(run)
    with pytest.raises(Killed):
        run.train()
    (kept,) = (tmp_path / "checkpoints").glob("step-*")
    kept.rename(tmp_path / "taken-away")
    assert poisoned(corpus, tmp_path).saves.resume() is None
    assert not (tmp_path / "checkpoints" / "rewound.json").exists()


def test_weights_whose_score_is_no_number_are_not_saved(corpus: Corpus, tmp_path: Path) -> None:
    """No evaluation is due there: the score of the checkpoint sees it."""
    rare = {"evaluation": {"every_steps": 100, "sequences": 1}, "train": {"steps": STEPS}}
    run = make_run(make_config(corpus, tmp_path / "run", spikes=SPIKES, checkpoint=EVERY_TWO, **rare), corpus)
    score = run.scorer.score

    def broken_once(of: Corpus, sequences: int | None) -> dict[str, tuple[float, int]]:
        is_broken = run.number == BAD_STEP and not run.detector.num_rewinds
        return {name: (nan if is_broken else nats, size) for name, (nats, size) in score(of, sequences).items()}

    run.scorer.score = broken_once
    assert run.train().step == STEPS and run.detector.num_rewinds == 1
    assert all(each.score is not None for each in list_checkpoints(tmp_path / "run" / "checkpoints").complete)
