"""The gate: which experts see a token, and with what weight."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from tapwater.config import ModelConfig


@dataclass(frozen=True)
class Routing:
    """A gate's decision for T tokens; `scores_TE` are the affinities s of all experts, kept for the balance losses."""

    expert_ids_TK: Tensor
    weights_TK: Tensor
    scores_TE: Tensor


class Gate(nn.Module):
    """Top-K routing in float32: `greedy`, `group_limited_greedy` (V2) or `noaux_tc` (V3).

    group_limited_greedy keeps the `topk_group` groups (devices) with the best single expert; noaux_tc keeps those with
    the best sum of two biased affinities. Bias steers the choice only: weights are the affinities themselves. With
    `norm_topk_prob` weights are made to sum to 1; `routed_scaling_factor` multiplies them either way. (V2 report
    equations 20-22 and section 2.2.2; V3 report section 2.1.2.)
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        moe = config.moe
        self.num_chosen = moe.num_experts_per_tok
        self.n_group, self.topk_group = moe.n_group, moe.topk_group
        self.topk_method = config.topk_method
        self.norm_topk_prob = config.norm_topk_prob
        self.routed_scaling_factor = config.routed_scaling_factor
        self.weight = nn.Parameter(torch.empty(moe.n_routed_experts, config.hidden_size))
        if config.topk_method == "noaux_tc":
            # moved by `balance.update_bias`, never by gradients; float32 in checkpoints of any dtype
            self.e_score_correction_bias = nn.Buffer(torch.zeros(moe.n_routed_experts))

    def forward(self, x_TD: Tensor) -> Routing:
        logits_TE = F.linear(x_TD.float(), self.weight.float())
        scores_TE = logits_TE.sigmoid() if self.topk_method == "noaux_tc" else logits_TE.softmax(dim=-1)
        expert_ids_TK = self.choose(scores_TE)
        weights_TK = scores_TE.gather(1, expert_ids_TK)
        if self.norm_topk_prob:
            weights_TK = weights_TK / (weights_TK.sum(dim=-1, keepdim=True) + 1e-20)
        return Routing(expert_ids_TK, weights_TK * self.routed_scaling_factor, scores_TE)

    @torch.no_grad()
    def choose(self, scores_TE: Tensor) -> Tensor:
        """Ids of the K experts for each token, best first."""
        if self.topk_method == "greedy":
            return scores_TE.topk(self.num_chosen, dim=-1).indices
        if self.topk_method == "noaux_tc":
            scores_TE = scores_TE + self.e_score_correction_bias
            group_TG = scores_TE.unflatten(-1, (self.n_group, -1)).topk(2, dim=-1).values.sum(dim=-1)
        else:
            group_TG = scores_TE.unflatten(-1, (self.n_group, -1)).amax(dim=-1)
        kept_TG = torch.zeros_like(group_TG, dtype=torch.bool)
        kept_TG.scatter_(1, group_TG.topk(self.topk_group, dim=-1).indices, True)
        kept_TE = kept_TG.repeat_interleave(scores_TE.shape[-1] // self.n_group, dim=-1)
        # -inf, not 0: a biased affinity may be negative and must still beat every expert outside its groups
        return scores_TE.masked_fill(~kept_TE, float("-inf")).topk(self.num_chosen, dim=-1).indices
