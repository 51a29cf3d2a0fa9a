"""Greedy generation for evaluations: the training model with a cache of one page a prompt, and nothing else."""

from collections.abc import Sequence

import torch

from tapwater.model import CacheView, Transformer

BATCH = 16  # prompts at a time: their cache must fit beside the training state


@torch.no_grad()
def generate(model: Transformer, prompts: Sequence[Sequence[int]], max_tokens: int, eos: int) -> list[list[int]]:
    """The likeliest next token, again and again, until EOS (left out) or `max_tokens`; for whole, unsplit models.

    Work and results depend on the arguments alone, so that processes that share a model may call it together.
    """
    found: list[list[int]] = []
    for start in range(0, len(prompts), BATCH):
        found += _generate(model, prompts[start : start + BATCH], max_tokens, eos)
    return found


def _generate(model: Transformer, prompts: Sequence[Sequence[int]], max_tokens: int, eos: int) -> list[list[int]]:
    answers: list[list[int]] = [[] for _ in prompts]
    pages = model.new_pages(len(prompts), max(map(len, prompts)) + max_tokens)
    size, device = pages.shape[2], pages.device
    active = list(range(len(prompts)))
    new = [list(prompt) for prompt in prompts]  # tokens whose entries are not in the cache yet
    for _ in range(max_tokens):
        queries = [len(new[row]) for row in active]
        contexts = [len(prompts[row]) + len(answers[row]) for row in active]
        places = [range(context - query, context) for query, context in zip(queries, contexts, strict=True)]
        view = CacheView(
            pages,
            torch.tensor(active, device=device)[:, None],
            torch.tensor(
                [row * size + place for row, each in zip(active, places, strict=True) for place in each], device=device
            ),
            tuple(queries),
            tuple(contexts),
        )
        tokens = torch.tensor([token for row in active for token in new[row]], device=device)
        positions = torch.tensor([place for each in places for place in each], device=device)
        hidden_TD = model(tokens, positions, view).hidden_TD
        last = torch.tensor(queries, device=device).cumsum(0) - 1
        for row, token in zip(active, model.predict(hidden_TD[last]).likeliest, strict=True):
            new[row] = [token]
            if token != eos:
                answers[row].append(token)
        active = [row for row in active if new[row] != [eos]]
        if not active:
            break
    return answers
