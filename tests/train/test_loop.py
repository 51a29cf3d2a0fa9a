"""Whole runs of a small model: what an interruption, a spike or another arithmetic does to them."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tapwater.checkpoint import load_hf
from tapwater.checkpoint.store_manifest import list_checkpoints
from tapwater.data.corpus import Corpus
from tapwater.errors import CheckpointError, ConfigError, DataError, TrainingError
from tapwater.model import Sequences
from tapwater.train.evaluate import bits_per_byte
from tapwater.train.metrics import read_evaluations, read_steps
from tapwater.train.settled import check_same, plain
from tiny_corpus import random_documents, write_corpus
from training import MOE, make_config, make_corpus, make_run

EXACT = (
    "step",
    "loss",
    "ce",
    "expert_loss",
    "device_loss",
    "communication_loss",
    "mtp_loss",
    "lr",
    "grad_norm",
    "load",
)
V3 = {"model_type": "deepseek_v3", "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True,
      "n_group": 2, "topk_group": 1, "num_nextn_predict_layers": 1}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpus") / "built")


def curve(directory: Path) -> list[list[object]]:
    """What every step must have in common with that of a run never interrupted."""
    return [[line.get(name) for name in EXACT] for line in read_steps(directory)]


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_hf(directory / "export").state_dict()


VARIANTS = {
    "moe": {},
    "bf16": {"train": {"precision": "bf16"}},
    "muon": {"optimizer": {"name": "muon", "muon_lr": 0.02}},
    "bias and mtp": {"model": V3, "balance": {"bias_step": 0.001, "expert_alpha": 1e-4}},
    "dropping and a ramp": {"balance": {"capacity_factor": 1.0}, "batch": {"ramp_from": 2, "ramp_steps": 4}},
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ("moe", "muon") else name for name in VARIANTS]
)
def test_an_interrupted_run_goes_on_bit_for_bit(name: str, corpus: Corpus, tmp_path: Path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    make_run(make_config(corpus, whole, **VARIANTS[name]), corpus).train()

    run = make_run(make_config(corpus, broken, **VARIANTS[name]), corpus)
    step = run.step.run

    def interrupted(*arguments):
        trained = step(*arguments)
        if run.number == 4:  # the fifth step is under way
            os.kill(os.getpid(), signal.SIGINT)
        return trained

    run.step.run = interrupted
    stopped = run.train()
    assert stopped.is_interrupted and stopped.step == 5
    (saved,) = [each for each in list_checkpoints(broken / "checkpoints").complete if each.step == 5]
    assert saved.score is None  # it was in haste
    finished = make_run(make_config(corpus, broken, **VARIANTS[name]), corpus).train()
    assert not finished.is_interrupted and finished.step == 8

    assert curve(broken) == curve(whole)
    assert [line["sources"] for line in read_evaluations(broken)] == [
        line["sources"] for line in read_evaluations(whole)
    ]
    for key, value in weights(whole).items():
        assert torch.equal(weights(broken)[key], value), key


def test_training_learns_what_repeats(corpus: Corpus, tmp_path: Path):
    config = make_config(corpus, tmp_path / "run", train={"steps": 30}, data={"mixture": {"code": 1.0}})
    make_run(config, corpus).train()
    losses = [line["ce"] for line in read_steps(tmp_path / "run")]
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("recomputation", ["selective", "full"])
def test_recomputation_changes_no_number(recomputation: str, precision: str, corpus: Corpus, tmp_path: Path):
    kept, again = tmp_path / "kept", tmp_path / "again"
    train = {"steps": 3, "precision": precision}
    make_run(make_config(corpus, kept, train=train), corpus).train()
    make_run(make_config(corpus, again, train={**train, "recomputation": recomputation}), corpus).train()
    assert curve(again) == curve(kept)


@pytest.mark.parametrize("model", [{}, V3], ids=["V2", "V3 with multi-token prediction"])
def test_micro_batches_add_up_to_the_batch(model: dict, corpus: Corpus, tmp_path: Path):
    runs = {}
    for micro in (1, 4):
        config = make_config(corpus, tmp_path / str(micro), batch={"micro_sequences": micro}, model=model)
        run = make_run(config, corpus)
        losses = run.step.forward_backward(run.loader.draw(4), 0)
        runs[micro] = losses, {name: each.grad for name, each in run.step.masters.named.items()}
    torch.testing.assert_close(vars(runs[1][0]), vars(runs[4][0]))
    torch.testing.assert_close(runs[1][1], runs[4][1], rtol=1e-4, atol=1e-7)


def test_the_step_loss_is_that_of_the_whole_batch_by_hand(corpus: Corpus, tmp_path: Path):
    run = make_run(make_config(corpus, tmp_path / "run"), corpus)
    batch = run.loader.draw(4)
    losses = run.step.forward_backward(batch, 0)
    total = 0.0
    for row in range(4):
        start = 0
        for length in batch.lengths[row]:
            tokens = torch.from_numpy(batch.tokens_BS[row, start : start + length])
            output = run.model(tokens, torch.arange(length), Sequences((length,)))
            logits = run.model.logits(output.hidden_TD).detach()
            targets = torch.from_numpy(batch.targets_BS[row, start : start + length])
            total += float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum"))
            start += length
    assert float(losses.ce) == pytest.approx(total / batch.num_targets, rel=1e-5)


def test_biases_move_against_the_load(corpus: Corpus, tmp_path: Path):
    config = make_config(corpus, tmp_path / "run", model=V3, balance={"bias_step": 0.001})
    run = make_run(config, corpus)
    trained = run.step.run(run.loader.draw(4), 1.0, 0)
    load_E = trained.losses.load_LE[0]
    expected = 0.001 * torch.sign(load_E.mean() - load_E)
    assert torch.equal(run.model.layers[1].mlp.gate.e_score_correction_bias, expected)
    ahead = trained.losses.load_LE[-1]
    assert torch.equal(
        run.model.mtp[0].block.mlp.gate.e_score_correction_bias, 0.001 * torch.sign(ahead.mean() - ahead)
    )


def test_a_spike_goes_back_and_skips_what_led_to_it(corpus: Corpus, tmp_path: Path):
    spikes = {"window": 2, "deviations": 6.0, "patience": 1}
    config = make_config(corpus, tmp_path / "run", spikes=spikes, checkpoint={"every_steps": 2}, train={"steps": 10})
    run = make_run(config, corpus)
    step, drawn = run.step.run, []

    def poisoned(batch, share, number):
        drawn.append(batch.tokens_BS.tobytes())
        if len(drawn) == 6:
            with torch.no_grad():
                run.model.lm_head.weight *= 100
        return step(batch, share, number)

    run.step.run = poisoned
    finished = run.train()
    assert finished.step == 10
    steps = [line["step"] for line in read_steps(tmp_path / "run")]
    assert steps == list(range(1, 11))
    assert len(drawn) == 12  # six, then five to ten again from step 4, on batches never seen
    assert len(set(drawn)) == 12
    assert all(line["loss"] < 10 for line in read_steps(tmp_path / "run"))


def test_other_settings_do_not_go_on(corpus: Corpus, tmp_path: Path):
    config = make_config(corpus, tmp_path / "run")
    make_run(config, corpus)
    with pytest.raises(TrainingError, match=r"optimizer\.lr"):
        make_run(make_config(corpus, tmp_path / "run", optimizer={"lr": 0.5}), corpus)


def test_an_interruption_in_a_step_that_is_saved_anyway_saves_it_once(corpus: Corpus, tmp_path: Path):
    run = make_run(make_config(corpus, tmp_path / "run"), corpus)
    step = run.step.run

    def interrupted(*arguments):
        if run.number == 3:  # the fourth step, of which there is a checkpoint in any case
            os.kill(os.getpid(), signal.SIGINT)
        return step(*arguments)

    run.step.run = interrupted
    stopped = run.train()
    assert stopped.is_interrupted and stopped.step == 4
    assert run.store.latest().step == 4


@pytest.mark.parametrize(
    ("settings", "said"), [({"steps": 9}, "steps 9"), ({"precision": "bf16"}, "precision bf16"),
                           ({"steps": None, "minutes": 1.0}, r"minutes 1\.0")],
)  # fmt: skip
def test_another_length_or_precision_is_refused_on_the_way(settings: dict, said: str, corpus: Corpus, tmp_path: Path):
    make_run(make_config(corpus, tmp_path / "run"), corpus)
    with pytest.raises(TrainingError, match=rf"began with 8 steps in float32; train\.{said} cannot"):
        make_run(make_config(corpus, tmp_path / "run", train=settings), corpus)


@pytest.mark.parametrize("text", ['{"config": ', "{}", "[]", '{"precision": "fp8", "total_steps": 8, "config": {}}'])
def test_a_damaged_run_file_is_refused(text: str, corpus: Corpus, tmp_path: Path):
    config = make_config(corpus, tmp_path / "run")
    make_run(config, corpus)
    (tmp_path / "run" / "run.json").write_text(text)
    with pytest.raises(TrainingError, match=r"run\.json.*put it back as it was"):
        make_run(config, corpus)


@pytest.mark.parametrize("name", ["checkpoints", "export", "spent.json"])
def test_what_is_of_no_known_run_is_not_taken_for_one(name: str, corpus: Corpus, tmp_path: Path):
    kept = tmp_path / "run" / name / "kept"
    kept.mkdir(parents=True)
    with pytest.raises(TrainingError, match=rf"{name}: exists, and no run\.json"):
        make_run(make_config(corpus, tmp_path / "run"), corpus)
    assert kept.is_dir()


def test_a_damaged_checkpoint_is_an_error_and_not_a_run_from_the_start(corpus: Corpus, tmp_path: Path):
    config = make_config(corpus, tmp_path / "run", checkpoint={"keep_last": 1}, train={"steps": 2})
    make_run(config, corpus).train()
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    (shard,) = (tmp_path / "run" / "checkpoints").glob("step-*/__0_0.distcp")
    os.truncate(shard, 100)
    with pytest.raises(CheckpointError, match=r"has 100 bytes.*remove that checkpoint to begin again"):
        make_run(config, corpus).train()
    assert (tmp_path / "run" / "metrics.jsonl").read_text() == metrics


SPIKES = {"window": 2, "patience": 1}


@pytest.mark.parametrize("lost", ["gradient", "weights"])
def test_lost_weights_are_never_saved(lost: str, corpus: Corpus, tmp_path: Path):
    """A step whose loss is a number can leave weights that are none: its gradient or held-out text show it."""
    config = make_config(corpus, tmp_path / "run", spikes=SPIKES, checkpoint={"every_steps": 2})
    run = make_run(config, corpus)
    name = "_clip" if lost == "gradient" else "_move_biases"  # before and after the optimizer's step
    method, called = getattr(run.step, name), []

    def poisoned(*arguments):
        found = method(*arguments)
        called.append(1)
        if len(called) == 4:  # a step with an evaluation and a checkpoint
            with torch.no_grad():
                run.model.norm.weight.fill_(float("nan"))
        return float("nan") if lost == "gradient" and len(called) == 4 else found

    setattr(run.step, name, poisoned)
    assert run.train().step == 8
    assert len(called) == 10  # four, then three to eight again from step 2
    assert all(each.isfinite().all() for each in weights(tmp_path / "run").values())


def test_spikes_may_be_looked_for_once_there_was_one(corpus: Corpus, tmp_path: Path):
    def train(**sections):
        run = make_run(make_config(corpus, tmp_path / "run", **sections), corpus)
        step = run.step.run
        first = run.loader.draw(24).tokens_BS[20:].tobytes()  # of the sixth step
        run.loader = make_run(make_config(corpus, tmp_path / "run", **sections), corpus).loader

        def poisoned(batch, share, number):
            if batch.tokens_BS.tobytes() == first:
                with torch.no_grad():
                    run.model.norm.weight.fill_(float("nan"))
            return step(batch, share, number)

        run.step.run = poisoned
        return run.train()

    with pytest.raises(TrainingError, match=r"step 6: .* set spikes\.window"):
        train()
    assert train(spikes=SPIKES).step == 8


def test_evaluations_that_cannot_be_are_refused_before_the_first_step(corpus: Corpus, tmp_path: Path):
    texts = {"code": random_documents(8, 20, 0, 300)}
    long = write_corpus(tmp_path / "long", texts, {"code": [list(range(2, 90))]}, 300)
    with pytest.raises(DataError, match="no held-out document of code fits 2 rows"):
        make_run(make_config(long, tmp_path / "run", evaluation={"sequences": 2}), long)
    assert not (tmp_path / "run").exists()
    untested = write_corpus(tmp_path / "untested", texts, {}, 300)
    with pytest.raises(ConfigError, match="has no held-out documents"):
        make_run(make_config(untested, tmp_path / "run"), untested)


def test_rows_computed_together_stay_together_where_tokens_are_dropped(corpus: Corpus, tmp_path: Path):
    for name, balance in (("kept", {}), ("dropped", {"capacity_factor": 1.0})):
        make_run(make_config(corpus, tmp_path / name, balance=balance), corpus)
    one = {"micro_sequences": 1}
    make_run(make_config(corpus, tmp_path / "kept", batch=one), corpus)
    with pytest.raises(TrainingError, match=r"batch\.micro_sequences"):
        make_run(make_config(corpus, tmp_path / "dropped", batch=one, balance={"capacity_factor": 1.0}), corpus)


def test_a_vocabulary_too_small_is_refused(corpus: Corpus, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"vocab_size 100 is less than the 300"):
        make_run(make_config(corpus, tmp_path / "run", model={"vocab_size": 100}), corpus)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("precision", ["float32", "auto"])  # auto must not build it to see which is faster
def test_what_does_not_fit_is_refused_before_it_starts(corpus: Corpus, tmp_path: Path, precision: str):
    huge = {"hidden_size": 32768, "num_attention_heads": 64, "num_key_value_heads": 64, "intermediate_size": 131072,
            "num_hidden_layers": 64}  # fmt: skip
    with pytest.raises(ConfigError, match=r"needs about [\d.]+ GB in each process and [\d.]+ GB are free"):
        make_run(make_config(corpus, tmp_path / "run", model=huge, train={"precision": precision}), corpus)
    assert not (tmp_path / "run").exists()


def test_the_best_is_the_best_on_the_same_text(corpus: Corpus, tmp_path: Path):
    """Every checkpoint is scored, by the rows that evaluations take, the last one too, which is evaluated on all."""
    every = {"checkpoint": {"every_steps": 3, "keep_last": 9}, "evaluation": {"every_steps": 4, "sequences": 1}}
    run = make_run(make_config(corpus, tmp_path / "run", **every), corpus)
    run.train()
    saved = list_checkpoints(tmp_path / "run" / "checkpoints").complete
    assert [each.step for each in saved] == [3, 6, 8] and None not in [each.score for each in saved]
    nats, num_bytes = (sum(parts) for parts in zip(*run.scorer.score(corpus, 1).values(), strict=True))
    assert saved[-1].score == pytest.approx(bits_per_byte(nats, int(num_bytes)), rel=1e-5)
    assert saved[-1].score != pytest.approx(read_evaluations(tmp_path / "run")[-1]["bits_per_byte"], rel=1e-5)


def test_a_setting_that_is_newer_than_the_run_had_its_default(corpus: Corpus, tmp_path: Path):
    config = make_config(corpus, tmp_path / "run")
    saved = plain(config)
    del saved["optimizer"]["muon_momentum"]
    check_same(saved, config, "run.json")
    other = make_config(corpus, tmp_path / "run", optimizer={"muon_momentum": 0.5})
    with pytest.raises(TrainingError, match=r"other settings of optimizer\.muon_momentum;"):
        check_same(saved, other, "run.json")


def test_a_corpus_may_move_but_not_change(corpus: Corpus, tmp_path: Path):
    run = make_run(make_config(corpus, tmp_path / "run"), corpus)
    moved = Corpus.open(shutil.copytree(corpus.path, tmp_path / "moved"))
    again = make_run(make_config(moved, tmp_path / "run"), moved)
    assert again.total_steps == run.total_steps
    other = make_corpus(tmp_path / "other", first_seed=5)
    assert other.fingerprint != corpus.fingerprint
    with pytest.raises(TrainingError, match=r"run\.json: the run began with another corpus, that was at .*built, and"):
        make_run(make_config(other, tmp_path / "run"), other)

    run.train()
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000008")
    record = tmp_path / "run" / "run.json"  # as runs wrote it that knew no fingerprint: their checkpoints do
    record.write_text(json.dumps({k: v for k, v in json.loads(record.read_text()).items() if k != "corpus"}))
    with pytest.raises(DataError, match="the saved place is of another corpus"):
        make_run(make_config(other, tmp_path / "run"), other).train()
    make_run(make_config(moved, tmp_path / "run"), moved).train()


def test_minutes_become_steps_that_are_kept(corpus: Corpus, tmp_path: Path):
    config = make_config(corpus, tmp_path / "run", train={"minutes": 0.05, "steps": None}, schedule={"warmup_steps": 0})
    run = make_run(config, corpus)
    assert 3 < run.total_steps < 3000
    fresh = make_run(make_config(corpus, tmp_path / "other"), corpus)
    torch.testing.assert_close(run.model.state_dict(), fresh.model.state_dict(), rtol=0, atol=0)
    assert not any(optimizer.state for optimizer in run.step.optimizers.list)
    assert make_run(config, corpus).total_steps == run.total_steps
    assert json.loads((tmp_path / "run" / "run.json").read_text())["total_steps"] == run.total_steps


def test_minutes_count_the_median_of_steps(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []

    def times_of(work: Callable[[], object], rounds: int) -> list[float]:
        asked.append(rounds)
        return [2.0] if rounds == 1 else [2.0] * (rounds // 2 + 1) + [50.0] * (rounds - rounds // 2 - 1)

    monkeypatch.setattr("tapwater.train.setup.times_of", times_of)
    for minutes, rounds in ((1.0, 3), (10.0, 3), (60.0, 18), (600.0, 30)):
        asked.clear()
        train = {"minutes": minutes, "steps": None}
        run = make_run(make_config(corpus, tmp_path / f"run{minutes}", train=train), corpus)
        assert asked == [1, rounds] and run.total_steps == round(0.95 * minutes * 60 / 2)


def test_a_long_context_stage_is_a_change_of_config(corpus: Corpus, tmp_path: Path):
    make_run(make_config(corpus, tmp_path / "short", train={"steps": 2}), corpus).train()
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    stage = make_config(
        corpus,
        tmp_path / "long",
        model={"max_position_embeddings": 256, "rope_scaling": yarn},
        data={"sequence_length": 128},
        init={"checkpoint": str(tmp_path / "short" / "export")},
        train={"steps": 2},
    )
    run = make_run(stage, corpus)
    torch.testing.assert_close(
        run.model.state_dict(), load_hf(tmp_path / "short" / "export", torch.float32).state_dict()
    )
    run.train()
    assert load_hf(tmp_path / "long" / "export").config.rope_scaling is not None


def test_an_init_of_another_shape_is_refused(corpus: Corpus, tmp_path: Path):
    make_run(make_config(corpus, tmp_path / "one", train={"steps": 1}, schedule={"warmup_steps": 0}), corpus).train()
    other = {**MOE, "kv_lora_rank": 8}
    with pytest.raises(ConfigError, match="kv_a_layernorm"):
        config = make_config(
            corpus, tmp_path / "two", model=other, init={"checkpoint": str(tmp_path / "one" / "export")}
        )
        make_run(config, corpus)
