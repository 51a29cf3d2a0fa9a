"""What is minimised: cross-entropy of the next token, of tokens further ahead, and the balance losses."""

from dataclasses import dataclass

import torch
from torch import Tensor

from tapwater import ops
from tapwater.config import BalanceConfig
from tapwater.data.batch import Batch
from tapwater.model import Balance, BalanceLosses, Sequences, Transformer


@dataclass(frozen=True)
class Rows:
    """Some rows of a batch as the model takes them: flat tokens, and which belong together."""

    tokens_T: Tensor
    targets_T: Tensor
    mask_T: Tensor
    sequences: Sequences
    balance: Balance | None


@dataclass(frozen=True)
class Losses:
    """Parts of a step's loss as they are added up, each already divided by what the global batch counts.

    `mtp` is without its weight. `load_LE` counts assignments of every MoE layer, those of multi-token prediction last.
    """

    ce: Tensor
    mtp: Tensor
    expert: Tensor
    device: Tensor
    communication: Tensor
    load_LE: Tensor

    def plus(self, other: "Losses") -> "Losses":
        return Losses(*(getattr(self, name) + getattr(other, name) for name in LOSS_NAMES))

    def detached(self) -> "Losses":
        return Losses(*(getattr(self, name).detach() for name in LOSS_NAMES))

    def total(self, mtp_weight: float) -> Tensor:
        return self.ce + mtp_weight * self.mtp + self.expert + self.device + self.communication


LOSS_NAMES = tuple(Losses.__dataclass_fields__)


def rows_of(batch: Batch, balance: BalanceConfig | None, undropped_B: Tensor | None, device: torch.device) -> Rows:
    """The rows of a batch on a device. Balance is asked for per row, whatever the documents in it.

    `undropped_B` marks rows of which no token is dropped (report section 2.2.4).
    """
    size = batch.tokens_BS.shape[1]
    told = None
    if balance is not None:
        undropped_T = None if undropped_B is None else undropped_B.repeat_interleave(size).to(device)
        told = Balance(balance, undropped_T, (size,) * batch.tokens_BS.shape[0])
    return Rows(
        torch.from_numpy(batch.tokens_BS).flatten().to(device),
        torch.from_numpy(batch.targets_BS).flatten().to(device),
        torch.from_numpy(batch.loss_mask_BS).flatten().to(device),
        Sequences(tuple(length for row in batch.lengths for length in row)),
        told,
    )


def losses_of(model: Transformer, rows: Rows, num_targets: int, row_share: float) -> Losses:
    """The losses of some rows of a global batch that has `num_targets` targets; `row_share` of its rows are these.

    Multi-token prediction is averaged over depths and divided by `num_targets` too (V3 report equation 24).
    """
    output = model(rows.tokens_T, rows.sequences.positions().to(rows.tokens_T.device), rows.sequences, rows.balance)
    ce = next_token_loss(model, output.hidden_TD, rows) / num_targets
    balances = [output.balance] if output.balance is not None else []
    ahead = torch.zeros_like(ce)
    predicted = model.predict_ahead(output.hidden_TD, rows.tokens_T, rows.sequences, rows.balance)
    for depth, found in enumerate(predicted, start=1):
        lengths = rows.sequences.lengths
        targets_T = torch.cat([part[depth:] for part in rows.targets_T.split(lengths)])
        mask_T = torch.cat([part[depth:] for part in rows.mask_T.split(lengths)])
        ahead = ahead + ops.linear_cross_entropy(found.output.hidden_TD, model.lm_head.weight, targets_T, mask_T)
        if found.output.balance is not None:
            balances.append(found.output.balance)
    return with_balance(ce, ahead / max(1, len(model.mtp)) / num_targets, balances, row_share)


def next_token_loss(model: Transformer, hidden_TD: Tensor, rows: Rows) -> Tensor:
    """The sum of -log p of the targets, in nats."""
    return ops.linear_cross_entropy(hidden_TD, model.lm_head.weight, rows.targets_T, rows.mask_T)


def with_balance(ce: Tensor, mtp: Tensor, balances: list[BalanceLosses], row_share: float) -> Losses:
    """Losses with those of layers added up: balance losses are means over rows, so each counts by its rows' share."""
    if not balances:
        zero = torch.zeros_like(ce)
        return Losses(ce, mtp, zero, zero, zero, torch.zeros(0, 0))
    expert, device, communication = (
        row_share * torch.stack(parts).sum()
        for parts in zip(*((each.expert, each.device, each.communication) for each in balances), strict=True)
    )
    return Losses(ce, mtp, expert, device, communication, torch.cat([each.load_E for each in balances]))
