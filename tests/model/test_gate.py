"""Gates against the reports' definitions, written out one token at a time."""

import pytest
import torch

from tapwater.config import ModelConfig, preset, replace_fields
from tapwater.model.gate import Gate, Routing


def gate_and_input(changes: dict, tokens: int = 200) -> tuple[ModelConfig, Gate, torch.Tensor]:
    experts = {"n_routed_experts": 24, "n_group": 6, "topk_group": 3, "num_experts_per_tok": 4}
    config = replace_fields(preset("tiny"), experts | changes, "gate")
    gate = Gate(config)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(gate.weight, 0, 0.3, generator=generator)
    return config, gate, torch.randn(tokens, config.hidden_size, generator=generator)


V3 = {"model_type": "deepseek_v3", "topk_method": "noaux_tc", "scoring_func": "sigmoid", "routed_scaling_factor": 2.5}


def by_the_book(config: ModelConfig, affinity: list[float], bias: list[float]) -> dict[int, float]:
    """Expert id to weight for one token."""
    moe = config.moe
    biased = [a + b for a, b in zip(affinity, bias, strict=True)]
    size = moe.n_routed_experts // moe.n_group
    groups = [range(group * size, (group + 1) * size) for group in range(moe.n_group)]
    allowed = list(range(moe.n_routed_experts))
    if config.topk_method != "greedy":
        best = 2 if config.topk_method == "noaux_tc" else 1
        value = [sum(sorted((biased[i] for i in group), reverse=True)[:best]) for group in groups]
        kept = sorted(range(moe.n_group), key=lambda group: -value[group])[: moe.topk_group]
        allowed = [i for group in kept for i in groups[group]]
    chosen = sorted(allowed, key=lambda i: -biased[i])[: moe.num_experts_per_tok]
    norm = sum(affinity[i] for i in chosen) if config.norm_topk_prob else 1.0
    return {i: affinity[i] / norm * config.routed_scaling_factor for i in chosen}


@pytest.mark.parametrize(
    "normalised", [False, True]
)  # transformers' DeepseekV2 ignores norm_topk_prob: no oracle there
@pytest.mark.parametrize(
    "changes",
    [
        {"topk_method": "greedy", "n_group": 1, "topk_group": 1},
        {"topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0},
        V3,
        V3 | {"n_group": 1, "topk_group": 1},
    ],
)
def test_routing_by_the_book(changes: dict, normalised: bool) -> None:
    config, gate, x = gate_and_input(changes | {"norm_topk_prob": normalised})
    bias = torch.zeros(24)
    if config.topk_method == "noaux_tc":
        # far below zero: an implementation that masks other groups with 0 would leave its groups here
        bias = torch.linspace(-3, -0.5, 24)[torch.randperm(24, generator=torch.Generator().manual_seed(1))]
        gate.e_score_correction_bias.copy_(bias)
    routing: Routing = gate(x)
    for token in range(x.shape[0]):
        expected = by_the_book(config, routing.scores_TE[token].tolist(), bias.tolist())
        found = dict(zip(routing.expert_ids_TK[token].tolist(), routing.weights_TK[token].tolist(), strict=True))
        assert found.keys() == expected.keys()
        assert found == pytest.approx(expected, rel=1e-5)


def test_affinities() -> None:
    _, softmax_gate, x = gate_and_input({"topk_method": "greedy", "n_group": 1, "topk_group": 1})
    logits = x @ softmax_gate.weight.T
    torch.testing.assert_close(softmax_gate(x).scores_TE, logits.exp() / logits.exp().sum(-1, keepdim=True))
    _, sigmoid_gate, x = gate_and_input(V3)
    torch.testing.assert_close(sigmoid_gate(x).scores_TE, 1 / (1 + (-x @ sigmoid_gate.weight.T).exp()))


def test_v2_sends_a_token_to_six_experts_on_at_most_three_devices() -> None:
    config = preset("deepseek-v2")
    gate = Gate(replace_fields(config, {"hidden_size": 64}, "narrow"))
    torch.nn.init.normal_(gate.weight, generator=torch.Generator().manual_seed(0))
    ids = gate(torch.randn(500, 64, generator=torch.Generator().manual_seed(1))).expert_ids_TK
    assert all(len(set(row)) == 6 for row in ids.tolist())
    assert max(len(set(row)) for row in (ids // 20).tolist()) == 3
