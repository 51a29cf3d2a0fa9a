"""Multi-token prediction: one more block that predicts the token after next (DeepSeek-V3 report section 2.2)."""

import torch
from torch import Tensor, nn

from tapwater.config import ModelConfig
from tapwater.model.balance import Balance, BalanceLosses
from tapwater.model.context import Sequences
from tapwater.model.layers import Linear, RMSNorm
from tapwater.model.rope import Rotation


class MultiTokenPrediction(nn.Module):
    """h^k_i = RMSNorm(block(eh_proj [RMSNorm(Emb(t_{i+k})) ; RMSNorm(h^{k-1}_i)])), logits = head(h^k_i).

    Embedding and head are the main model's. The report writes the hidden state first; published weights have the
    embedding first, and so do we. It does not say where the last norm stands when depths are chained; we hand on what
    the head sees, at every depth alike (h^0 is the main model's output after its final norm), as transformers does.
    """

    def __init__(self, config: ModelConfig, block: nn.Module) -> None:
        super().__init__()
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = Linear(2 * config.hidden_size, config.hidden_size)
        self.block = block
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        embedded_TD: Tensor,
        previous_TD: Tensor,
        rotation: Rotation,
        sequences: Sequences,
        balance: Balance | None,
    ) -> tuple[Tensor, BalanceLosses | None]:
        """h^k [T, D] from the embeddings of the tokens k ahead and h^{k-1}, row by row."""
        x_TD = self.eh_proj(torch.cat((self.enorm(embedded_TD), self.hnorm(previous_TD)), dim=-1))
        hidden_TD, losses = self.block(x_TD, rotation, sequences, 0, balance)  # no cache, so any layer number will do
        return self.norm(hidden_TD), losses
