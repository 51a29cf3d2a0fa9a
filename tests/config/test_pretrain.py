"""The configuration of a training run: the shipped files, what goes over what, and what is refused."""

from pathlib import Path

import pytest

from tapwater.config import load_pretrain, preset
from tapwater.config.pretrain import ScheduleSection
from tapwater.cost.counts import parameters
from tapwater.errors import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
RUNS = ("tiny", "small", "lite", "v2")


@pytest.mark.parametrize("name", RUNS)
def test_the_shipped_runs_can_be_read(name: str):
    assert load_pretrain(CONFIGS / f"{name}.toml").model.is_mla


@pytest.mark.parametrize(("name", "published"), [("lite", "deepseek-v2-lite"), ("v2", "deepseek-v2")])
def test_they_are_the_published_models(name: str, published: str):
    assert parameters(load_pretrain(CONFIGS / f"{name}.toml").model) == parameters(preset(published))


def test_v2_is_trained_as_its_report_says():
    run = load_pretrain(CONFIGS / "v2.toml")
    assert (run.optimizer.lr, run.optimizer.beta1, run.optimizer.beta2) == (2.4e-4, 0.9, 0.95)
    assert (run.schedule.step_at, run.schedule.step_factor, run.schedule.warmup_steps) == ((0.6, 0.9), 0.316, 2000)
    assert (run.batch.ramp_from, run.batch.sequences, run.data.sequence_length) == (2304, 9216, 4096)
    assert (run.balance.expert_alpha, run.balance.device_alpha, run.balance.communication_alpha) == (0.003, 0.05, 0.02)
    ramp = run.batch.ramp_steps * (2304 + 9216) / 2 * 4096
    assert ramp == pytest.approx(225e9, rel=0.01)
    assert ramp + (run.train.steps - run.batch.ramp_steps) * 9216 * 4096 == pytest.approx(8.1e12, rel=0.02)


def test_overrides_go_before_the_file():
    run = load_pretrain(CONFIGS / "tiny.toml", ["optimizer.lr=0.5", "model.n_routed_experts=32", "train.seed=7"])
    assert (run.optimizer.lr, run.model.n_routed_experts, run.train.seed) == (0.5, 32, 7)


REFUSED = {
    "optimizer.learning_rate=1": "unknown field 'learning_rate'",
    "optimiser.lr=1": "did you mean 'optimizer'",
    "data.sequence_length=5000": "more than the model's max_position_embeddings 1024",
    "batch.sequences=6": "batch: sequences 6 is not a multiple of micro_sequences 4",
    "parallel.dp=3": "is not a multiple of micro_sequences 4 \\* dp 3",
    "parallel.ep=2": "ep 2 does not divide dp 1",
    "train.steps=5": "give steps or minutes",
    "model.topk_method=greedy": "topk_method",
    "schedule.step_at=[0.9, 0.6]": "rising shares",
    "balance.num_devices=3": "num_devices 3 does not divide",
    "train.precision=fp8": "'fp8' is not one of",
    "train.machine=somewhere": "machine or usd_per_hour, not both",
    "data.mixture={stdlib = -1.0}": "weight of stdlib must be above 0",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_cannot_be_is_named(override: str):
    with pytest.raises(ConfigError, match=REFUSED[override]):
        load_pretrain(CONFIGS / "tiny.toml", [override])


def test_a_preset_and_a_checkpoint_contradict_each_other():
    with pytest.raises(ConfigError, match="not both"):
        load_pretrain(CONFIGS / "tiny.toml", ["model.preset=deepseek-v2-lite", "init.checkpoint=somewhere"])


def test_a_decay_may_not_rise_above_one():
    with pytest.raises(ConfigError, match="final_share"):
        ScheduleSection(final_share=1.5)
