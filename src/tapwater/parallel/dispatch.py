"""Expert parallelism: tokens travel to the processes that hold their experts, and back."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from tapwater.model.gate import Routing
from tapwater.model.moe import Dispatcher, Experts


def all_to_all_dispatch(group: dist.ProcessGroup) -> Dispatcher:
    """A Dispatcher for a group whose member p holds experts p * E/P .. (p + 1) * E/P - 1 of P members.

    Assignments that were dropped are not sent. Tokens leave when it is called and are computed when its answer is
    called: what happens between the two, the shared experts, overlaps with their journey. Weights stay at home and are
    applied to what comes back. The sums are those of `ops.experts`, in the same order.
    """
    members = dist.get_world_size(group)

    def dispatch(experts: Experts, x_TD: Tensor, routing: Routing, kept_TK: Tensor | None) -> Callable[[], Tensor]:
        num_experts, num_chosen = routing.scores_TE.shape[1], routing.expert_ids_TK.shape[1]
        expert_A = routing.expert_ids_TK.flatten()
        order_A = expert_A.argsort(stable=True)  # by expert, so by member too
        if kept_TK is not None:
            order_A = order_A[kept_TK.flatten()[order_A]]
        token_A = order_A // num_chosen
        sent_PE = torch.bincount(expert_A[order_A], minlength=num_experts).view(members, -1)
        received_PE = torch.empty_like(sent_PE)
        dist.all_to_all_single(received_PE, sent_PE, group=group)
        there = _Exchange(group, sent_PE.sum(dim=1).tolist(), received_PE.sum(dim=1).tolist())
        back = _Exchange(group, there.receives, there.sends)
        travelling_AD = there.start(x_TD[token_A])

        def collect() -> Tensor:
            y_AD = _compute(experts, there.finish(travelling_AD), received_PE)
            y_AD = back.finish(back.start(y_AD)) * routing.weights_TK.flatten()[order_A, None]
            return torch.zeros_like(x_TD).index_add(0, token_A, y_AD.to(x_TD.dtype))

        return collect

    return dispatch


def _compute(experts: Experts, x_AD: Tensor, received_PE: Tensor) -> Tensor:
    """Rows came from each member in turn, sorted by expert; each is one token for one of the experts here."""
    if not x_AD.shape[0]:
        # A row of zeros: without it this process would leave the graph, and the others wait for it in the backward pass
        padded = _compute(
            experts, F.pad(x_AD, (0, 0, 0, 1)), F.pad(torch.zeros_like(received_PE)[:1, :-1], (1, 0), value=1)
        )
        return padded[:0]
    here = torch.arange(received_PE.shape[1], device=x_AD.device).repeat(received_PE.shape[0])
    expert_A1 = here.repeat_interleave(received_PE.flatten())[:, None]
    ones_A1 = torch.ones_like(expert_A1, dtype=x_AD.dtype)
    return experts(x_AD, Routing(expert_A1, ones_A1, ones_A1), None)


class _Exchange:
    """One all-to-all of rows, and in the backward pass the same the other way; asynchronous between start and finish.

    `sends[p]` rows go to member p, `receives[p]` come from it. Between `start` and `finish` the rows that `start`
    returned must not be looked at.
    """

    def __init__(self, group: dist.ProcessGroup, sends: list[int], receives: list[int]) -> None:
        self.group, self.sends, self.receives = group, sends, receives
        self._under_way: tuple[dist.Work, Tensor, Tensor] | None = None  # what is sent must live until it is there

    def start(self, rows: Tensor) -> Tensor:
        return _Start.apply(rows, self)

    def finish(self, rows: Tensor) -> Tensor:
        return _Finish.apply(rows, self)

    def launch(self, rows: Tensor, sends: list[int], receives: list[int]) -> Tensor:
        rows = rows.contiguous()
        arriving = rows.new_empty(sum(receives), *rows.shape[1:])
        work = dist.all_to_all_single(arriving, rows, receives, sends, group=self.group, async_op=True)
        assert work is not None
        self._under_way = work, rows, arriving
        return arriving

    def wait(self) -> Tensor:
        assert self._under_way is not None
        work, _, arrived = self._under_way
        self._under_way = None
        work.wait()
        return arrived


class _Start(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: _Exchange) -> Tensor:  # pyrefly: ignore[bad-override]
        ctx.exchange = exchange
        return exchange.launch(rows, exchange.sends, exchange.receives)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyrefly: ignore[bad-override]
        """The gradient that `_Finish` sent off has arrived; the argument only kept its place in the graph."""
        return ctx.exchange.wait(), None


class _Finish(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: _Exchange) -> Tensor:  # pyrefly: ignore[bad-override]
        ctx.exchange = exchange
        return exchange.wait()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyrefly: ignore[bad-override]
        ctx.exchange.launch(gradient, ctx.exchange.receives, ctx.exchange.sends)
        return gradient, None
