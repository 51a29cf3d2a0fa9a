"""Measuring a machine: random models behave like models, rates are positive, files come back as they were."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from kernel_rates import RATES, measured
from tapwater.calibration import Probe, measure_kernels, measure_machine, median_rates, random_weights
from tapwater.calibration.kernels import ROWS, latent, llama
from tapwater.calibration.machine import memory_bytes, processor
from tapwater.config import ModelConfig, preset, replace_fields
from tapwater.cost.hardware import load_machines, to_toml
from tapwater.model import CacheView, PackedTransformer
from tapwater.ops.cache_format import CacheFormat
from tapwater.ops.quant import Format, unpack

SMALL = {"num_hidden_layers": 3, "hidden_size": 256, "intermediate_size": 256, "vocab_size": 512}
EXPERTS = replace_fields(
    preset("deepseek-v2-lite"), SMALL | {"moe_intermediate_size": 64, "bos_token_id": 1, "eos_token_id": 2}, "small"
)


@pytest.mark.parametrize("format", list(Format))
def test_random_weights_are_centred_and_of_the_size_trained_ones_have(format: Format) -> None:
    weights = random_weights(llama(256, 256, 1, 4, 4), format)
    for name, packed in weights.matrices.items():
        floats = unpack(packed).float()
        assert abs(floats.mean()) < 0.002, name
        assert 0.01 < floats.std() < 0.04, name


@pytest.mark.parametrize("format", [Format.Q4, Format.Q8])
def test_tokens_of_a_random_model_choose_different_experts_and_stay_finite(format: Format) -> None:
    """States that had become alike would choose the same, and speed with them would mean nothing."""
    model = PackedTransformer(EXPERTS, random_weights(EXPERTS, format), 1, CacheFormat.BFLOAT16)
    tokens = torch.arange(100, 164)
    pages = model.new_pages(64, 1)
    view = CacheView(pages, torch.arange(64)[:, None], torch.arange(64), (1,) * 64, (1,) * 64, 64)
    hidden = model(tokens, torch.zeros(64, dtype=torch.int64), view).hidden_TD
    model.close()
    assert hidden.isfinite().all()
    alike = torch.nn.functional.cosine_similarity(hidden[None], hidden[:, None], dim=-1)
    assert alike[~torch.eye(64, dtype=torch.bool)].abs().mean() < 0.3


@pytest.mark.parametrize("config", [llama(64, 64, 2, 4, 2), latent(4), EXPERTS], ids=["grouped", "latent", "experts"])
def test_a_probe_times_steps(config: ModelConfig) -> None:
    probe = Probe(config, Format.Q4, 1, CacheFormat.Q8)
    short, long = probe.decode(2, 16, 5), probe.decode(2, 4096, 5)
    assert 0 < short < long
    assert 0 < probe.prefill(16, 0, 2) < probe.prefill(256, 256, 2)
    probe.close()


def test_the_median_of_rounds_counts_and_how_far_they_differ() -> None:
    slow = replace(
        RATES, layer_s=3e-5, weight_s={name: tuple(2 * s for s in each) for name, each in RATES.weight_s.items()}
    )
    found = median_rates([RATES, slow, replace(RATES, layer_s=2e-5)])
    assert found.layer_s == 2e-5
    assert found.weight_s == RATES.weight_s
    assert found.drift == pytest.approx(1.0)
    assert asdict(replace(found, layer_s=RATES.layer_s, drift=RATES.drift)) == asdict(RATES)


def test_measured_rates_are_written_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "measured.toml"
    path.write_text(to_toml(measured()))
    assert load_machines(path) == {"measured": measured()}


def test_this_machine_is_described() -> None:
    assert "family" in processor()
    assert 2**28 < memory_bytes() < 2**50


@pytest.mark.slow
def test_every_rate_of_this_machine_is_measured() -> None:
    seen: list[tuple[int, int]] = []
    rates = measure_kernels(1, lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 5
    for times in rates.weight_s.values():
        assert len(times) == len(ROWS)
        assert all(time > 0 for time in times)
        assert times[-1] > 20 * times[0]  # 512 rows are bound by products, one is by memory
    for table in (rates.grouped_s, rates.absorbed_s):
        assert set(table) == {str(format) for format in CacheFormat}
        assert all(times[-1] > times[0] > 0 for times in table.values())
    for name in ("attend_s", "row_s", "layer_s", "logit_s"):
        assert 0 < getattr(rates, name) < 1e-3, name
    assert all(1e-13 < seconds < 1e-9 for seconds in rates.prompt_mac_s.values())


@pytest.mark.slow
def test_a_measured_machine_is_one_of_the_catalogue_s_kind(tmp_path: Path) -> None:
    found = measure_machine("here", 1, None, lambda done, total: None)
    assert found.kernels is not None
    path = tmp_path / "here.toml"
    path.write_text(to_toml(found))
    assert load_machines(path) == {"here": found}
