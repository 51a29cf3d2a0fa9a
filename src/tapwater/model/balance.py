"""Keeping experts and devices evenly loaded in training: three losses, token dropping, and the loss-free bias."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tapwater.config import BalanceConfig
from tapwater.errors import ConfigError
from tapwater.model.gate import Gate, Routing


@dataclass(frozen=True)
class Balance:
    """What the model is told of balancing in a training step; `undropped_T` marks tokens that are never dropped.

    The report exempts about 10% of the sequences so that inference may run without dropping. Losses are per sequence;
    `row_lengths` says what a sequence is where rows are packed from documents (None: those that attention keeps apart).
    """

    config: BalanceConfig
    undropped_T: Tensor | None = None
    row_lengths: tuple[int, ...] | None = None

    def ahead(self, lengths: Sequence[int], depth: int) -> "Balance":
        """The same of the tokens that have one `depth` ahead in their own sequence, of `lengths` tokens."""
        undropped_T, row_lengths = self.undropped_T, self.row_lengths
        if undropped_T is not None:
            undropped_T = torch.cat([part[:-depth] for part in undropped_T.split(list(lengths))])
        if row_lengths is not None:  # sequences lie within rows; a row of which nothing is left is none
            counted = torch.cat([torch.arange(length) < length - depth for length in lengths])
            left = [int(part.sum()) for part in counted.split(list(row_lengths))]
            row_lengths = tuple(length for length in left if length)
        return Balance(self.config, undropped_T, row_lengths)


@dataclass(frozen=True)
class BalanceLosses:
    """The three losses of one layer, or of a model when summed; `load_E` counts assignments before dropping."""

    expert: Tensor
    device: Tensor
    communication: Tensor
    load_E: Tensor

    @property
    def total(self) -> Tensor:
        return self.expert + self.device + self.communication


def balance_losses(routing: Routing, lengths: Sequence[int], config: BalanceConfig) -> BalanceLosses:
    """L_ExpBal, L_DevBal and L_CommBal (report equations 23-31), per sequence, averaged over sequences.

    With f_i the normalised count of tokens that chose expert i and P_i its mean affinity: alpha * sum_i f_i P_i over
    experts, over devices (f averaged, P summed within a device), and over devices counted once per token sent there.
    Sigmoid affinities (V3) are normalised to sum to 1 first, so that P is a distribution.
    """
    num_experts = routing.scores_TE.shape[1]
    num_chosen = routing.expert_ids_TK.shape[1]
    devices = config.num_devices
    if num_experts % devices:
        raise ConfigError(f"balance: num_devices {devices} does not divide n_routed_experts {num_experts}")
    affinity_TE = routing.scores_TE / routing.scores_TE.sum(dim=-1, keepdim=True)
    chosen_TE = F.one_hot(routing.expert_ids_TK, num_experts).sum(dim=1).to(affinity_TE.dtype)
    sent_TG = chosen_TE.unflatten(-1, (devices, -1)).amax(dim=-1)

    losses = affinity_TE.new_zeros(3)
    for chosen, sent, affinity in zip(
        chosen_TE.split(list(lengths)), sent_TG.split(list(lengths)), affinity_TE.split(list(lengths)), strict=True
    ):
        tokens = chosen.shape[0]
        f_E = chosen.sum(dim=0) * num_experts / (num_chosen * tokens)
        p_E = affinity.mean(dim=0)
        p_G = p_E.unflatten(0, (devices, -1)).sum(dim=-1)
        f_device_G = f_E.unflatten(0, (devices, -1)).mean(dim=-1)
        f_sent_G = sent.sum(dim=0) * devices / (config.max_devices * tokens)
        losses = losses + torch.stack(((f_E * p_E).sum(), (f_device_G * p_G).sum(), (f_sent_G * p_G).sum()))
    losses = losses / len(lengths)
    return BalanceLosses(
        config.expert_alpha * losses[0],
        config.device_alpha * losses[1],
        config.communication_alpha * losses[2],
        chosen_TE.sum(dim=0),
    )


def sum_losses(losses: Sequence[BalanceLosses]) -> BalanceLosses:
    """The layers' losses added up, as the report adds them; loads stay per layer, stacked to [layers, E]."""
    return BalanceLosses(
        torch.stack([each.expert for each in losses]).sum(),
        torch.stack([each.device for each in losses]).sum(),
        torch.stack([each.communication for each in losses]).sum(),
        torch.stack([each.load_E for each in losses]),
    )


@torch.no_grad()
def kept_assignments(routing: Routing, balance: Balance) -> Tensor | None:
    """Which assignments [T, K] survive device-level token dropping, or None when nothing is dropped (report 2.2.4).

    A device takes capacity_factor times the average number of assignments; beyond that the ones with the lowest
    affinity go, tokens marked undropped last of all - they are kept even past the capacity.
    """
    config = balance.config
    if config.capacity_factor is None:
        return None
    tokens, chosen = routing.expert_ids_TK.shape
    device_A = (routing.expert_ids_TK // (routing.scores_TE.shape[1] // config.num_devices)).flatten()
    affinity_A = routing.scores_TE.gather(1, routing.expert_ids_TK).flatten()
    exempt_A = torch.zeros_like(device_A, dtype=torch.bool)
    if balance.undropped_T is not None:
        if balance.undropped_T.shape != (tokens,):
            raise ValueError(f"undropped_T has shape {list(balance.undropped_T.shape)}, there are {tokens} tokens")
        exempt_A = balance.undropped_T[:, None].expand(-1, chosen).flatten()
    capacity = int(config.capacity_factor * tokens * chosen / config.num_devices)
    kept_A = exempt_A.clone()
    for device in range(config.num_devices):
        here = (device_A == device).nonzero().squeeze(1)
        # exempt ones first, then by affinity: affinities are below 1
        order = (affinity_A[here] + exempt_A[here]).argsort(descending=True, stable=True)
        kept_A[here[order[:capacity]]] = True
    return kept_A.view(tokens, chosen)


@torch.no_grad()
def update_bias(gate: Gate, load_E: Tensor, step: float) -> None:
    """Loss-free balancing (V3 report section 2.1.2): after a step, lower the bias of overloaded experts by `step`,
    raise that of underloaded ones; `load_E` counts assignments over the whole batch."""
    gate.e_score_correction_bias.add_(step * torch.sign(load_E.mean() - load_E))
