"""Balance losses against the report's sums written as loops; token dropping and the loss-free bias by their rules."""

import pytest
import torch

from tapwater.config import BalanceConfig
from tapwater.errors import ConfigError
from tapwater.model import Balance, Sequences, Transformer, update_bias
from tapwater.model.balance import balance_losses, kept_assignments
from tapwater.model.gate import Routing
from tiny import CONFIGS, prompt

E_, K, D, M = 12, 3, 4, 2
CONFIG = BalanceConfig(num_devices=D, max_devices=M)


def routing(tokens: int, seed: int = 0) -> Routing:
    scores = (torch.randn(tokens, E_, generator=torch.Generator().manual_seed(seed)) * 2).softmax(-1)
    chosen = scores.topk(K)
    return Routing(chosen.indices, chosen.values, scores)


def losses_by_the_book(ids: list[list[int]], scores: list[list[float]]) -> tuple[float, float, float]:
    """Equations 23-31 for one sequence."""
    tokens, size = len(ids), E_ // D
    f = [E_ / (K * tokens) * sum(i in row for row in ids) for i in range(E_)]
    p = [sum(row[i] for row in scores) / tokens for i in range(E_)]
    devices = [range(d * size, (d + 1) * size) for d in range(D)]
    f1 = [sum(f[j] for j in device) / size for device in devices]
    p1 = [sum(p[j] for j in device) for device in devices]
    f2 = [D / (M * tokens) * sum(any(i in device for i in row) for row in ids) for device in devices]
    alphas = (CONFIG.expert_alpha, CONFIG.device_alpha, CONFIG.communication_alpha)
    sums = (zip(f, p, strict=True), zip(f1, p1, strict=True), zip(f2, p1, strict=True))
    return tuple(alpha * sum(a * b for a, b in pairs) for alpha, pairs in zip(alphas, sums, strict=True))


def test_losses_by_the_book() -> None:
    lengths = (10, 25, 3)
    whole = routing(38)
    losses = balance_losses(whole, lengths, CONFIG)
    books = [
        losses_by_the_book(ids.tolist(), scores.tolist())
        for ids, scores in zip(whole.expert_ids_TK.split(lengths), whole.scores_TE.split(lengths), strict=True)
    ]
    expected = [sum(book[i] for book in books) / 3 for i in range(3)]
    found = [float(losses.expert), float(losses.device), float(losses.communication)]
    assert found == pytest.approx(expected, rel=1e-5)
    assert float(losses.total) == pytest.approx(sum(expected), rel=1e-5)
    assert losses.load_E.sum() == 38 * K


def test_perfect_balance_costs_the_alphas() -> None:
    """0.003 + 0.05 + 0.02 = 0.073 a layer when every token uses exactly M devices evenly (V2's settings)."""
    experts, devices, per_device = 160, 8, 20
    rows = []
    for token in range(160 * 8):
        start = token % devices
        on = [(start + step) % devices for step in range(3)]
        rows.append([device * per_device + (token // devices * 2 + i) % per_device for device in on for i in range(2)])
    ids = torch.tensor(rows)
    scores = torch.full((len(rows), experts), 1 / experts)
    losses = balance_losses(Routing(ids, scores.gather(1, ids), scores), (len(rows),), BalanceConfig())
    assert float(losses.total) == pytest.approx(0.073, abs=1e-6)


def test_sigmoid_affinities_are_normalised_first() -> None:
    scores = torch.rand(20, E_, generator=torch.Generator().manual_seed(0))
    ids = scores.topk(K).indices
    raw = balance_losses(Routing(ids, scores.gather(1, ids), scores), (20,), CONFIG)
    normalised = scores / scores.sum(-1, keepdim=True)
    same = balance_losses(Routing(ids, scores.gather(1, ids), normalised), (20,), CONFIG)
    torch.testing.assert_close(raw.total, same.total)


def test_losses_reach_the_gate_and_their_sum_is_reported() -> None:
    model = Transformer.random(CONFIGS["v2"], seed=0)
    ids = torch.tensor(prompt(30, 1))
    output = model(ids, Sequences((12, 18)).positions(), Sequences((12, 18)), Balance(CONFIG))
    assert output.balance is not None
    assert output.balance.load_E.shape == (2, 8)
    output.balance.total.backward()
    assert model.layers[1].mlp.gate.weight.grad.abs().sum() > 0
    assert model(ids, Sequences((30,)).positions(), Sequences((30,))).balance is None


def test_devices_that_do_not_divide_the_experts_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_devices 5"):
        balance_losses(routing(4), (4,), BalanceConfig(num_devices=5))


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.3])
def test_an_overloaded_device_drops_its_lowest_affinities(factor: float) -> None:
    whole = routing(64)
    exempt = torch.zeros(64, dtype=torch.bool)
    exempt[:6] = True
    config = BalanceConfig(num_devices=D, max_devices=M, capacity_factor=factor)
    kept = kept_assignments(whole, Balance(config, exempt))
    assert kept is not None
    capacity = int(factor * 64 * K / D)
    affinity = whole.scores_TE.gather(1, whole.expert_ids_TK)
    assert kept[:6].all()
    for device in range(D):
        here = whole.expert_ids_TK // (E_ // D) == device
        held, dropped = here & kept, here & ~kept
        assert held.sum() == min(here.sum(), max(capacity, (here & exempt[:, None]).sum()))
        competing = held & ~exempt[:, None]
        if dropped.any() and competing.any():
            assert affinity[dropped].max() <= affinity[competing].min()
    assert kept_assignments(whole, Balance(CONFIG)) is None


def test_dropping_changes_the_output_and_ample_capacity_does_not() -> None:
    model = Transformer.random(CONFIGS["v2"], seed=0)
    ids = torch.tensor(prompt(30, 1))

    def hidden(factor: float | None) -> torch.Tensor:
        config = BalanceConfig(num_devices=4, max_devices=2, capacity_factor=factor)
        return model(ids, Sequences((30,)).positions(), Sequences((30,)), Balance(config)).hidden_TD

    torch.testing.assert_close(hidden(4.0), hidden(None))
    assert not torch.allclose(hidden(0.3), hidden(None), atol=1e-4)


def test_the_bias_moves_against_the_load() -> None:
    gate = Transformer.random(CONFIGS["v3"], seed=0).layers[1].mlp.gate
    load = torch.tensor([30.0, 1, 5, 2, 2, 2, 5, 1])  # mean 6, median 2
    update_bias(gate, load, 0.001)
    torch.testing.assert_close(gate.e_score_correction_bias, torch.tensor([-1, 1, 1, 1, 1, 1, 1, 1]) * 0.001)
    update_bias(gate, torch.full((8,), 6.0), 0.001)
    assert gate.e_score_correction_bias[0] == -0.001


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_devices": 0}, "num_devices"),
        ({"max_devices": 0}, "max_devices"),
        ({"max_devices": 9}, "max_devices"),
        ({"capacity_factor": -1.0}, "capacity_factor"),
        ({"capacity_factor": float("nan")}, "capacity_factor"),
        ({"expert_alpha": -0.1}, "expert_alpha"),
    ],
)
def test_impossible_settings_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        BalanceConfig(**settings)
