"""The two forms of MLA are one function, in the module and against the cache."""

import math

import pytest
import torch

from tapwater.config import preset
from tapwater.engine.latent_cache import LatentCache
from tapwater.model import Sequences
from tapwater.model.attention import LatentAttention
from tapwater.model.rope import inverse_frequencies, rotation, softmax_scale, yarn_mscale
from tiny import CONFIGS, prompt, tiny_model

MLA_NAMES = [name for name, config in CONFIGS.items() if config.is_mla]


@pytest.mark.parametrize("name", MLA_NAMES)
@pytest.mark.parametrize("chunks", [(40,), (1,) * 40, (7, 1, 20, 12), (39, 1)])
def test_expand_equals_absorb_equals_uncached(name: str, chunks: tuple[int, ...]) -> None:
    config = CONFIGS[name]
    model = tiny_model(name)
    attention = model.layers[1].self_attn
    assert isinstance(attention, LatentAttention)
    x = torch.randn(40, config.hidden_size, generator=torch.Generator().manual_seed(0))
    uncached = attention(x, rotation(config, torch.arange(40)), Sequences((40,)), 1)

    cache = LatentCache(model, num_pages=12, page_size=4)
    start = 0
    for size in chunks:
        positions = torch.arange(start, start + size)
        view = cache.view([list(range(11, 0, -1))], [size], [start + size], 0)
        rows = x[start : start + size]
        attention(rows, rotation(config, positions), view, 1)  # stores the chunk
        queries = attention.queries(rows, rotation(config, positions))
        part = view.select(lambda query, context: True)
        assert part is not None
        for form in (attention.absorb, attention.expand):
            out = attention.o_proj(form(*queries, view.pages_LPSX[1], part).flatten(1))
            torch.testing.assert_close(out, uncached[start : start + size], atol=1e-5, rtol=0)
        start += size


@pytest.mark.parametrize("name", CONFIGS)
def test_sequences_do_not_see_each_other(name: str) -> None:
    model = tiny_model(name)
    first, second = torch.tensor(prompt(9, 1)), torch.tensor(prompt(14, 2))
    lengths = (9, 14)
    together = model(torch.cat((first, second)), Sequences(lengths).positions(), Sequences(lengths)).hidden_TD
    alone = model(second, Sequences((14,)).positions(), Sequences((14,))).hidden_TD
    torch.testing.assert_close(together[9:], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("lengths", "positions"), [((1,), 30), ((10, 21), 30), ((30,), 1), ((30,), 31), ((15, 15), 29)]
)
def test_lengths_that_disagree_are_refused(lengths: tuple[int, ...], positions: int) -> None:
    with pytest.raises(ValueError, match="disagree"):
        tiny_model("v2")(torch.tensor(prompt(30, 1)), torch.arange(positions), Sequences(lengths))


@pytest.mark.parametrize("lengths", [(), (0,), (3, -1), (2.0,)])
def test_impossible_lengths_are_refused(lengths: tuple) -> None:
    with pytest.raises(ValueError, match="lengths must be positive"):
        Sequences(lengths)


def test_the_form_is_chosen_by_cost() -> None:
    with torch.device("meta"):
        attention = LatentAttention(preset("deepseek-v2"))
    assert attention.absorb_is_cheaper(1, 2)
    assert attention.absorb_is_cheaper(1, 100_000)
    assert attention.absorb_is_cheaper(100, 10_000)
    assert not attention.absorb_is_cheaper(512, 512)
    assert not attention.absorb_is_cheaper(200, 100_000)


def test_yarn_of_deepseek_v2() -> None:
    """The report's numbers (section 3.1.4): sqrt(t) = 0.0707 ln 40 + 1, frequencies blended from pair 10 to 23."""
    config = preset("deepseek-v2")
    assert yarn_mscale(40, 0.707) == pytest.approx(1.260804, abs=1e-6)
    assert yarn_mscale(40, 0.707) == pytest.approx(0.0707 * math.log(40) + 1, abs=1e-12)
    assert softmax_scale(config) == pytest.approx(0.1147214, abs=1e-7)
    assert softmax_scale(preset("deepseek-v3")) == pytest.approx(0.1352338, abs=1e-7)
    turned = rotation(config, torch.arange(3))
    torch.testing.assert_close(turned.cos[0], torch.ones(32))  # the ratio of the mscales is 1
    plain = 10000.0 ** -(torch.arange(0, 64, 2) / 64)
    ratio = inverse_frequencies(config) / plain
    torch.testing.assert_close(ratio[:11], torch.ones(11))
    torch.testing.assert_close(ratio[23:], torch.full((9,), 1 / 40))
    assert ((ratio[11:23] < 1) & (ratio[11:23] > 1 / 40)).all()
