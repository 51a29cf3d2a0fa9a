"""Ablations: equal budgets, runs that go on where they stopped, and what is said of them."""

import io
import json
import os
import signal
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from tapwater.checkpoint import load_hf
from tapwater.cli.ablation_bars import AblationBars
from tapwater.cli.ablation_report import table, write_ablation_report
from tapwater.config.ablation import AblationConfig, BudgetSection, Variant, load_ablation
from tapwater.config.pretrain import BatchSection, ParallelSection
from tapwater.cost.counts import mtp_training_flops_per_token, parameters
from tapwater.data.corpus import Corpus
from tapwater.errors import ConfigError, TrainingError
from tapwater.parallel import join
from tapwater.train import ablation_plan
from tapwater.train.ablation import run_all
from tapwater.train.ablation_plan import settle, steps_for
from tapwater.train.ablation_results import Curve, Spread, collect, reach, smoothed, t_quantile
from training import MOE, make_config, make_corpus, make_run

DENSE = {**MOE, "intermediate_size": 96, "n_routed_experts": None, "n_shared_experts": None, "n_group": None,
         "num_experts_per_tok": None, "moe_intermediate_size": None, "first_k_dense_replace": None,
         "topk_group": None}  # fmt: skip
RENT = Decimal("0.05")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "built")


def make_ablation(corpus: Corpus, directory: Path, **budget: object) -> AblationConfig:
    asked = {"base": "base.toml", "directory": str(directory), "seeds": 2, "steps": 6, **budget}
    brief = {"checkpoint": {"every_steps": 2}, "evaluation": {"sequences": 1}}
    base = make_config(corpus, directory / "base", **brief)
    dense = make_config(corpus, directory / "base", **brief, model=DENSE)
    return AblationConfig(BudgetSection(**asked), base, (Variant("moe", base), Variant("dense", dense)))


class Stop(AblationBars):
    """Asks for an end after some steps, as Ctrl-C does."""

    def __init__(self, *arguments: object, after: int) -> None:
        super().__init__(*arguments)  # pyrefly: ignore
        self.left = after

    def step(self, progress: object) -> None:
        super().step(progress)  # pyrefly: ignore
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_ablation_goes_on_and_says_what_it_found(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tapwater.train.loop.matmul_peak", lambda *_: 1e10)  # measured for MFU alone, and slow
    ablation = make_ablation(corpus, tmp_path)
    world, out = join(ParallelSection()), Console(file=io.StringIO(), width=200)
    plan = settle(ablation, ablation.variants, corpus, world)
    with Stop(out, plan, tmp_path, 2, after=8) as bars:  # in a step that is saved in any case
        assert not run_all(plan, tmp_path, 2, corpus, world, RENT, bars)
    part = collect(plan, tmp_path, 2, None, RENT)
    assert [each.name for each in part.results] == ["moe"] and part.unfinished == ["dense"]

    kept = (tmp_path / "moe" / "seed-0" / "metrics.jsonl").read_bytes()
    plan = settle(ablation, ablation.variants, corpus, world)
    with AblationBars(out, plan, tmp_path, 2) as bars:
        assert run_all(plan, tmp_path, 2, corpus, world, RENT, bars)
    assert (tmp_path / "moe" / "seed-0" / "metrics.jsonl").read_bytes() == kept
    assert "resumed at step" in (tmp_path / "dense" / "seed-0" / "log.txt").read_text()

    results = collect(plan, tmp_path, 2, None, RENT)
    moe, dense = results.results
    tokens = {each.name: each.steps * 4 * 32 * each.flops_per_token for each in results.results}
    assert tokens["moe"] == pytest.approx(plan.amount)
    assert tokens["dense"] == pytest.approx(plan.amount, rel=0.5 / dense.steps)
    assert moe.loss.n == dense.loss.n == 2 and moe.loss.seeds[0] != moe.loss.seeds[1]
    assert results.target_loss == max(max(each.loss.seeds.values()) for each in results.results)
    for each in results.results:  # every seed came to the worst one's loss
        assert each.reached is not None and each.reached.tokens.n == 2 and 0 < each.reached.tokens.mean <= each.tokens
        assert each.reached.cost_usd is not None and each.budget_share == pytest.approx(1, rel=0.1)
    # a seed is the same text for all: the same tokens in the same order
    assert [json.loads((tmp_path / name / "seed-1" / "run.json").read_text())["config"]["train"]["seed"]
            for name in ("moe", "dense")] == [4, 4]  # fmt: skip

    write_ablation_report(tmp_path, ablation, plan, results)
    written = json.loads((tmp_path / "results.json").read_text())
    assert [each["name"] for each in written["variants"]] == ["moe", "dense"]
    assert written["variants"][0]["loss"]["seeds"]["1"] == moe.loss.seeds[1]
    assert f"| moe | {parameters(ablation.base.model).total:,} |" in table(ablation, plan, results)
    assert "Less moe, seed by seed" in (tmp_path / "report.html").read_text()

    with pytest.raises(TrainingError, match="another steps of the base"):
        settle(replace(ablation, budget=replace(ablation.budget, steps=7)), ablation.variants, corpus, world)
    other = make_config(corpus, tmp_path / "base", optimizer={"lr": 0.02})
    with pytest.raises(TrainingError, match=r"variant moe: .*optimizer\.lr"):
        settle(ablation, (Variant("moe", other),), corpus, world)


def test_equal_time_gives_a_slower_variant_fewer_steps(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = {True: 0.5, False: 0.25}
    monkeypatch.setattr(ablation_plan, "seconds_per_step", lambda config, corpus, world: seconds[config.model.is_moe])
    ablation = make_ablation(corpus, tmp_path, equal="wall_clock", steps=None, minutes=1.0)
    plan = settle(ablation, ablation.variants, corpus, join(ParallelSection()))
    assert {each.name: each.config.train.steps for each in plan.variants} == {"moe": 120, "dense": 240}
    monkeypatch.setattr(ablation_plan, "seconds_per_step", None)  # what was measured once is kept
    again = settle(ablation, ablation.variants, corpus, join(ParallelSection()))
    assert again == plan


def test_a_ramp_of_the_batch_is_counted() -> None:
    plain = BatchSection(sequences=8, micro_sequences=2)
    assert steps_for(10 * 8 * 32, plain, 32) == 10
    ramp = replace(plain, ramp_from=2, ramp_steps=3)  # rows 2, 4, 6 and then 8
    assert steps_for((2 + 4 + 6 + 8 * 7) * 32, ramp, 32) == 10
    assert steps_for(1, plain, 32) == 1


def test_the_cost_of_a_loss_is_read_between_steps() -> None:
    curve = Curve(np.array([5.0, 4.0, 3.0]), np.array([10.0, 20.0, 30.0]), np.array([1.0, 2.0, 4.0]))
    assert reach(curve, 3.5) == (25.0, 3.0)
    assert reach(curve, 2.9) is None
    eased = Curve(np.array([5.0, 3.0, 4.0, 3.0]), np.arange(4.0), np.arange(4.0))  # once is not yet for good
    assert reach(eased, 3.5) == (2.5, 2.5)
    assert reach(curve, 6.0) == (10.0, 1.0)


def test_smoothing_looks_back_only() -> None:
    losses = np.arange(400, dtype=float)
    assert smoothed(losses)[5] == 2.5 and smoothed(losses)[-1] == np.mean(losses[-20:])


def test_spreads_pair_what_both_have() -> None:
    one, other = Spread({0: 1.0, 1: 2.0, 2: 3.0}), Spread({0: 0.5, 1: 1.0})
    difference = one.minus(other)
    assert difference is not None and difference.seeds == {0: 0.5, 1: 1.0}
    low, high = one.interval or (0.0, 0.0)
    assert (low, high) == pytest.approx((2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-4)
    broken = Spread({0: 1.0, 1: float("nan")})
    assert broken.deviation is not None and np.isnan(broken.deviation)
    assert one.deviation == 1.0 and Spread({0: 1.0}).deviation is None and one.minus(Spread({7: 0.0})) is None


@pytest.mark.parametrize(("freedom", "expected"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (10, 2.2281), (999, 1.9623)])
def test_quantiles_of_students_t_are_those_of_printed_tables(freedom: int, expected: float) -> None:
    assert t_quantile(freedom) == pytest.approx(expected, abs=5e-5)


def test_a_run_that_diverges_is_told_of_and_the_others_go_on(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tapwater.train.loop.matmul_peak", lambda *_: 1e10)
    ablation = make_ablation(corpus, tmp_path, seeds=1)
    hot = make_config(corpus, tmp_path / "base", optimizer={"lr": 1e30}, evaluation={"sequences": 1})
    ablation = replace(ablation, variants=(Variant("hot", hot), *ablation.variants[1:]))
    world, out = join(ParallelSection()), Console(file=io.StringIO(), width=200)
    for _ in range(2):
        plan = settle(ablation, ablation.variants, corpus, world)
        with AblationBars(out, plan, tmp_path, 1) as bars:
            assert run_all(plan, tmp_path, 1, corpus, world, RENT, bars)
        monkeypatch.setattr("tapwater.train.ablation._run", None)  # the second time there is nothing to do
    results = collect(plan, tmp_path, 1, None, RENT)
    assert [each.name for each in results.results] == ["dense"] and results.unfinished == ["hot"]
    assert len(results.diverged) == 1 and results.diverged[0].startswith("hot, seed 0: step 2: the loss")
    write_ablation_report(tmp_path, ablation, plan, results)
    assert "Diverged: hot, seed 0" in (tmp_path / "table.md").read_text()


def test_what_would_be_refused_in_its_turn_is_refused_before_any_run(corpus: Corpus, tmp_path: Path) -> None:
    world = join(ParallelSection())
    warm = make_config(corpus, tmp_path / "base", model=DENSE, schedule={"warmup_steps": 50})
    with pytest.raises(ConfigError, match="variant warm: schedule: warmup_steps 50 is more than"):
        settle(make_ablation(corpus, tmp_path), (Variant("warm", warm),), corpus, world)
    huge = make_config(corpus, tmp_path / "base", model={**DENSE, "intermediate_size": 2**20})
    with pytest.raises(ConfigError, match=r"variant huge: whole steps \(1\) come to .*% of the budget"):
        settle(make_ablation(corpus, tmp_path), (Variant("huge", huge),), corpus, world)
    late = make_config(corpus, tmp_path / "base", train={"seed": 2**31 - 1})
    with pytest.raises(ConfigError, match=r"moe, seed 1: .*seed"):
        settle(replace(make_ablation(corpus, tmp_path), base=late), (Variant("moe", late),), corpus, world)
    assert not (tmp_path / "plan.json").exists()


def test_a_plan_that_is_damaged_or_computed_otherwise_is_refused(corpus: Corpus, tmp_path: Path) -> None:
    world, ablation = join(ParallelSection()), make_ablation(corpus, tmp_path)
    settle(ablation, ablation.variants, corpus, world)
    other = make_config(
        corpus,
        tmp_path / "base",
        checkpoint={"every_steps": 2},
        evaluation={"sequences": 1},
        train={"recomputation": "full"},
    )
    with pytest.raises(TrainingError, match=r"speeds are compared, so train\.recomputation must stay"):
        settle(ablation, (Variant("moe", other),), corpus, world)
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    with pytest.raises(TrainingError, match="began with another threads"):
        settle(ablation, ablation.variants, corpus, world)
    torch.set_num_threads(threads)
    for text in ("{", "{}"):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(TrainingError, match="put it back as it was"):
            settle(ablation, ablation.variants, corpus, world)


def test_multi_token_prediction_costs_a_layer_a_projection_and_the_head() -> None:
    from tapwater.config import ModelConfig

    one = ModelConfig(**{**MOE, "num_nextn_predict_layers": 1})
    counted = parameters(one)
    idle = (one.moe.n_routed_experts - one.moe.num_experts_per_tok) * 3 * 32 * one.moe.moe_intermediate_size
    weights = counted.mtp - 5 * 32 - idle + one.vocab_size * 32  # norms multiply no matrix
    assert mtp_training_flops_per_token(one, 32).matmul == 6 * weights
    assert mtp_training_flops_per_token(ModelConfig(**MOE), 32).total == 0


def test_a_step_is_timed_on_a_run_that_leaves_nothing(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tapwater.train.loop.matmul_peak", lambda *_: 1e10)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    config = make_config(corpus, tmp_path / "run", schedule={"kind": "wsd"})
    assert 0 < ablation_plan.seconds_per_step(config, corpus, join(ParallelSection())) < 10
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_every_shipped_variant_trains_and_is_exported(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tapwater.train.loop.matmul_peak", lambda *_: 1e10)
    small = make_config(corpus, tmp_path, train={"steps": 2}, evaluation={"sequences": 1})
    path = Path(__file__).parent.parent.parent / "configs" / "ablation.toml"
    for variant in load_ablation(path).variants:
        train = replace(small.train, directory=str(tmp_path / variant.name))
        schedule = replace(variant.config.schedule, warmup_steps=1)
        config = replace(variant.config, data=small.data, batch=small.batch, train=train, schedule=schedule)
        make_run(config, corpus).train()
        assert load_hf(tmp_path / variant.name / "export").config == config.model
