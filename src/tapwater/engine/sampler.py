"""From logits to the next token, one request at a time so that no request's draw depends on its neighbours'."""

import torch
from torch import Tensor

from tapwater.engine.request import Request, SamplingParams, TokenLogprobs
from tapwater.model import Prediction

TOP_P_FIRST_LOOK = 1024  # candidates sorted before the whole vocabulary is; an optimisation, the result is the same


def sample(prediction: Prediction, row: int, request: Request) -> tuple[int, TokenLogprobs | None]:
    """The next token of a request, whose logits are row `row`, and, where asked for, logprobs under the model's
    unmodified distribution."""
    params = request.params
    if params.temperature == 0 and not _is_adjusted(params):
        token = prediction.likeliest[row]
    else:
        token = _draw(_adjusted(prediction.logits_RW[row], request), params, request.generator)
    wanted = params.logprobs
    return token, None if wanted is None else _logprobs(prediction.logits_RW[row], token, wanted)


def _is_adjusted(params: SamplingParams) -> bool:
    penalised = params.presence_penalty or params.frequency_penalty or params.repetition_penalty != 1.0
    return bool(params.logit_bias or penalised)


def _adjusted(logits_W: Tensor, request: Request) -> Tensor:
    """Logits after logit_bias and penalties."""
    params = request.params
    if not _is_adjusted(params):
        return logits_W
    logits_W = logits_W.clone()
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias))
        logits_W[ids] += torch.tensor(list(params.logit_bias.values()), dtype=logits_W.dtype)
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(request.prompt_token_ids + request.output_token_ids).unique()
        values = logits_W[seen]
        factor = params.repetition_penalty
        logits_W[seen] = torch.where(values > 0, values / factor, values * factor)
    if request.output_token_ids and (params.presence_penalty or params.frequency_penalty):
        ids, counts = torch.tensor(request.output_token_ids).unique(return_counts=True)
        logits_W[ids] -= params.presence_penalty + params.frequency_penalty * counts
    return logits_W


def _draw(logits_W: Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    """Greedy at temperature 0; else one uniform number, looked up in the cumulative distribution that is left."""
    if params.temperature == 0:
        return int(logits_W.argmax())
    # the best logit becomes 0 first: divided by a tiny temperature it would be infinite, and softmax NaN
    probs_W = ((logits_W.double() - logits_W.max()) / params.temperature).softmax(dim=-1)
    ids, probs = _candidates(probs_W, params)
    cumulative = probs.cumsum(0)
    point = torch.rand((), generator=generator, dtype=torch.float64) * cumulative[-1]
    # rounding may put the point on the very end: the last candidate with any probability is meant
    index = torch.searchsorted(cumulative, point, right=True).clamp(max=int(probs.nonzero()[-1]))
    return int(index if ids is None else ids[index])


def _candidates(probs_W: Tensor, params: SamplingParams) -> tuple[Tensor | None, Tensor]:
    """Token ids (None: all, in order) and probabilities that survive top_k, then top_p, then min_p.

    top_p is a share of what top_k left; min_p is relative to the best token.
    """
    vocab = probs_W.shape[0]
    top_k = min(params.top_k or vocab, vocab)
    if top_k == vocab and params.top_p == 1:
        if params.min_p == 0:
            return None, probs_W
        ids = (probs_W >= params.min_p * probs_W.max()).nonzero().squeeze(1)
        return ids, probs_W[ids]
    probs, ids = probs_W.topk(min(top_k, TOP_P_FIRST_LOOK))
    total = probs_W.sum() if top_k == vocab else None
    if top_k > TOP_P_FIRST_LOOK and (total is None or probs.sum() < params.top_p * total):
        probs, ids = probs_W.topk(top_k)
    if params.top_p < 1:
        share = params.top_p * (total if total is not None else probs.sum())
        # a token stays while the ones before it have not reached the share: the best always stays
        count = int((probs.cumsum(0) - probs < share).sum())
        probs, ids = probs[:count], ids[:count]
    kept = probs >= params.min_p * probs[0]
    return ids[kept], probs[kept]


def _logprobs(logits_W: Tensor, token: int, count: int) -> TokenLogprobs:
    logprobs_W = logits_W.log_softmax(dim=-1)
    values, ids = logprobs_W.topk(min(count, logprobs_W.shape[0]))
    top = tuple(zip(ids.tolist(), values.tolist(), strict=True))
    return TokenLogprobs(token, float(logprobs_W[token]), top)
