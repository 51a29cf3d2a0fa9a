"""The tensors of a step."""

from array import array

import torch

from tapwater.engine.batch import build_batch
from tapwater.engine.latent_cache import LatentCache
from tapwater.engine.request import Request, SamplingParams
from tapwater.engine.scheduler import Chunk
from tiny import tiny_model


def request(prompt: list[int], output: list[int], computed: int, pages: list[int]) -> Request:
    generator = torch.Generator()
    return Request(0, prompt, SamplingParams(), 99, generator, output, computed, array("q", pages))


def test_generated_tokens_come_first_and_pages_are_padded() -> None:
    cache = LatentCache(tiny_model("v2"), num_pages=8, page_size=4)
    unfinished = Chunk(request([20, 21, 22, 23, 24, 25, 26], [], 1, [7, 2, 3]), 3)
    whole = Chunk(request([30, 31], [], 0, [6]), 2)
    generating = Chunk(request([40] * 8, [41], 8, [5, 0, 4]), 1)
    batch = build_batch([unfinished, whole, generating], cache)
    view = batch.view
    assert batch.tokens_T.tolist() == [41, 30, 31, 21, 22, 23]
    assert batch.positions_T.tolist() == [8, 0, 1, 1, 2, 3]
    assert view.page_table_BP.tolist() == [[5, 0, 4], [6, 0, 0], [7, 2, 3]]
    assert view.slots_T.tolist() == [16, 24, 25, 29, 30, 31]
    assert (view.query_lengths, view.context_lengths, view.num_generating) == ((1, 2, 3), (9, 2, 4), 1)
    assert batch.sampling == [generating.request, whole.request] and batch.rows == [0, 2]
    assert {tensor.dtype for tensor in (batch.tokens_T, batch.positions_T, view.slots_T, view.page_table_BP)} == {
        torch.int64
    }


def test_the_page_table_is_as_wide_as_the_longest_context() -> None:
    cache = LatentCache(tiny_model("v2"), num_pages=8, page_size=4)
    # pages taken ahead of the tokens that will fill them are of no concern to a step
    view = cache.view([array("q", [3, 1, 5]), [2]], [1, 1], [5, 4], 2)
    assert view.page_table_BP.tolist() == [[3, 1], [2, 0]]
    assert view.slots_T.tolist() == [4, 11]
