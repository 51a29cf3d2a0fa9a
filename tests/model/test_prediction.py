"""What greedy choice needs of the logits, by the specification and by the native pass."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from tapwater.config import replace_fields
from tapwater.model import PackedTransformer, PackedWeights, Prediction, Transformer
from tapwater.ops import native
from tapwater.ops.cache_format import CacheFormat
from tapwater.ops.quant import Format, quantise
from tiny import CONFIGS

VOCAB = 1003  # fills neither a vector nor the stretches the native pass goes by
CONFIG = replace_fields(CONFIGS["llama-gqa"], {"vocab_size": VOCAB, "num_hidden_layers": 1}, "head")
WIDTH = CONFIG.hidden_size

Predict = Callable[[Tensor, Tensor], Prediction]  # of head [W, D] and hidden states [R, D]


def by_specification(head_WD: Tensor, hidden_RD: Tensor) -> Prediction:
    model = Transformer.random(CONFIG, seed=0).requires_grad_(False)
    model.lm_head.weight.copy_(head_WD)
    return model.predict(hidden_RD)


def natively(threads: int) -> Predict:
    def predict(head_WD: Tensor, hidden_RD: Tensor) -> Prediction:
        head = quantise(head_WD, Format.BF16)
        weights = PackedWeights(
            {"embed_tokens.weight": head, "lm_head.weight": head}, {"norm.weight": torch.ones(WIDTH)}
        )
        model = PackedTransformer(CONFIG, weights, threads, CacheFormat.BFLOAT16)
        prediction = model.predict(hidden_RD)
        model.close()
        return prediction

    return predict


@pytest.fixture(params=["specification", *(f"{threads} threads" for threads in (1, 2, 5) if native.is_built())])
def predict(request: pytest.FixtureRequest) -> Iterator[Predict]:
    yield by_specification if request.param == "specification" else natively(int(request.param[0]))


def random_head() -> Tensor:
    return torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(1)).bfloat16().float()


@pytest.mark.parametrize("tokens", [(0,), (VOCAB - 1,), (255,), (256,), (992,), (3, 4), (3, 700), (700, 900, 1002)])
def test_the_likeliest_token_is_the_lowest_of_equals(tokens: tuple[int, ...], predict: Predict) -> None:
    hidden_RD = torch.stack([torch.ones(WIDTH), -torch.ones(WIDTH)])
    head_WD = random_head()
    head_WD[list(tokens)] = 8.0
    prediction = predict(head_WD, hidden_RD)
    assert prediction.likeliest[0] == tokens[0]
    assert prediction.likeliest == prediction.logits_RW.argmax(dim=1).tolist()
    assert prediction.is_finite == [True, True]


@pytest.mark.parametrize("token", [0, 255, 256, 640, VOCAB - 1])
@pytest.mark.parametrize("weight", [3e38, -3e38])
def test_one_infinite_logit_spoils_its_row_alone(token: int, weight: float, predict: Predict) -> None:
    hidden_RD = torch.stack([torch.zeros(WIDTH), torch.ones(WIDTH), torch.zeros(WIDTH)])
    head_WD = random_head()
    head_WD[token] = weight
    prediction = predict(head_WD, hidden_RD)
    assert int(prediction.logits_RW[1].isfinite().logical_not().sum()) == 1
    assert prediction.is_finite == [True, False, True]
    assert prediction.likeliest[::2] == [0, 0]


def test_a_hidden_state_that_is_no_number_spoils_its_row_alone(predict: Predict) -> None:
    hidden_RD = torch.randn(11, WIDTH, generator=torch.Generator().manual_seed(2))
    hidden_RD[4, 7] = torch.nan
    prediction = predict(random_head(), hidden_RD)
    assert prediction.is_finite == [row != 4 for row in range(11)]
