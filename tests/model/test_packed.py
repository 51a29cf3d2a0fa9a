"""The native model against Transformer on the weights it really has, and bit for bit against itself."""

import dataclasses
import random
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from ops.instruction_sets import forced
from tapwater.checkpoint import pack_weights, save_hf
from tapwater.checkpoint.hf import HfDirectory
from tapwater.checkpoint.unpacked import UnpackedSource
from tapwater.checkpoint.weights import build
from tapwater.config import EngineConfig, ModelConfig, replace_fields
from tapwater.engine import Engine, SamplingParams
from tapwater.engine.latent_cache import LatentCache
from tapwater.model import CacheView, PackedTransformer, PackedWeights, Sequences, Transformer
from tapwater.ops import native
from tapwater.ops.cache_format import CacheFormat
from tapwater.ops.quant import Format
from tiny import CONFIGS, prompt, tiny_model

pytestmark = pytest.mark.skipif(not native.is_built(), reason="the native kernels are not built")

ODD = {  # widths that fill neither lanes nor groups, and head widths from 32 up
    "llama-odd": replace_fields(
        CONFIGS["llama-gqa"], {"hidden_size": 36, "intermediate_size": 44, "head_dim": 18, "vocab_size": 101}, "odd"
    ),
    "llama-wide": replace_fields(
        CONFIGS["llama-gqa"], {"head_dim": 256, "num_attention_heads": 2, "num_key_value_heads": 1}, "wide"
    ),
    "v2-odd": replace_fields(
        CONFIGS["v2"],
        {"kv_lora_rank": 20, "qk_nope_head_dim": 12, "v_head_dim": 10, "moe_intermediate_size": 20},
        "odd",
    ),
    "one-expert": replace_fields(
        CONFIGS["deepseek-moe"], {"n_routed_experts": 1, "num_experts_per_tok": 1, "n_shared_experts": 0}, "one"
    ),
    "300-experts": replace_fields(
        CONFIGS["deepseek-moe"], {"n_routed_experts": 300, "num_experts_per_tok": 7, "moe_intermediate_size": 33}, "300"
    ),
}
ALL = CONFIGS | ODD


@pytest.fixture(params=native.INSTRUCTION_SETS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    for _ in forced(request.param, threads=1):
        yield request.param


def float_model(name: str) -> Transformer:
    return tiny_model(name) if name in CONFIGS else Transformer.random(ODD[name], seed=3).eval().requires_grad_(False)


@pytest.fixture(scope="session")
def packed_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, Format], PackedWeights]:
    made = {}
    for name in ALL:
        path = tmp_path_factory.mktemp("float")
        save_hf(float_model(name), path / name)
        for format in Format:
            made[name, format] = pack_weights(ALL[name], HfDirectory(path / name), format).weights
    return made


def unpacked(config: ModelConfig, weights: PackedWeights) -> Transformer:
    """A float model of exactly the packed weights."""
    source = UnpackedSource(config, weights, "packed weights")
    return build(source.config, source, None).requires_grad_(False)


@dataclasses.dataclass
class Sequence:
    """Tokens whose first `prompt` are a prompt; `done` of them are computed, hidden states collected."""

    tokens: list[int]
    prompt: int
    pages: list[int]
    done: int = 0
    hidden: list[Tensor] = dataclasses.field(default_factory=list)

    def most(self) -> int:
        return (self.prompt if self.done < self.prompt else len(self.tokens)) - self.done


def step(model: PackedTransformer, cache: LatentCache, chunks: list[tuple[Sequence, int]]) -> None:
    chunks = sorted(chunks, key=lambda chunk: chunk[0].done < chunk[0].prompt)
    tokens = [token for each, size in chunks for token in each.tokens[each.done : each.done + size]]
    positions = [position for each, size in chunks for position in range(each.done, each.done + size)]
    view = cache.view(
        [each.pages for each, _ in chunks],
        [size for _, size in chunks],
        [each.done + size for each, size in chunks],
        sum(each.done >= each.prompt for each, _ in chunks),
    )
    hidden_TD = model(torch.tensor(tokens), torch.tensor(positions), view).hidden_TD
    for (each, size), part in zip(chunks, hidden_TD.split([size for _, size in chunks]), strict=True):
        each.hidden.append(part)
        each.done += size


def hidden_states(
    model: PackedTransformer, lengths: list[tuple[int, int]], page_size: int, chance: random.Random | None
) -> list[Tensor]:
    """Hidden states of sequences of (prompt, generated) tokens: alone and prompts whole, or by a random schedule."""
    pages_each = -(-max(sum(length) for length in lengths) // page_size)
    cache = LatentCache(model, pages_each * len(lengths), page_size)
    poison(cache.pages_LPSX)
    order = list(range(pages_each * len(lengths)))
    if chance:
        chance.shuffle(order)
    sequences = [
        Sequence(prompt(sum(length), seed, model.config.vocab_size), length[0], order[seed :: len(lengths)])
        for seed, length in enumerate(lengths)
    ]
    while waiting := [each for each in sequences if each.done < len(each.tokens)]:
        if chance is None:
            each = waiting[0]
            step(model, cache, [(each, each.most() if each.done < each.prompt else 1)])
        else:
            chosen = chance.sample(waiting, chance.randint(1, len(waiting)))
            step(model, cache, [(each, chance.randint(1, each.most())) for each in chosen])
    return [torch.cat(each.hidden) for each in sequences]


def poison(pages: Tensor) -> None:
    """Unused slots hold what numbers cannot be: all bits set is NaN in every float format."""
    pages.fill_(255)


@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize("name", ALL)
def test_logits_equal_those_of_the_float_model(
    name: str, format: Format, packed_weights: dict[tuple[str, Format], PackedWeights]
) -> None:
    weights = packed_weights[name, format]
    reference = unpacked(ALL[name], weights)
    model = PackedTransformer(ALL[name], weights, 2, CacheFormat.FLOAT32)
    ids = torch.tensor(prompt(40, 0, ALL[name].vocab_size))
    (hidden,) = hidden_states(model, [(33, 7)], 4, None)
    sequences = Sequences((40,))
    expected = reference.logits(reference(ids, sequences.positions(), sequences).hidden_TD)
    found = model.logits(hidden)
    prediction = model.predict(hidden)
    model.close()
    assert torch.equal(prediction.logits_RW, found)
    assert prediction.likeliest == found.argmax(dim=1).tolist() and prediction.is_finite == [True] * 40
    # what is left is the rounding of activations to 8 bits a group, or to bfloat16; a gate near a tie may tip over
    error = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert error.median() < 0.03, error


@pytest.mark.parametrize("name", ALL)
def test_bits_do_not_depend_on_company_chunks_pages_or_threads(
    name: str, isa: str, packed_weights: dict[tuple[str, Format], PackedWeights]
) -> None:
    chance = random.Random(f"{name} {isa}")
    format = chance.choice(list(Format))
    cache = chance.choice(list(CacheFormat))
    check_bits(ALL[name], packed_weights[name, format], cache, chance)


@pytest.mark.slow
@pytest.mark.parametrize("cache", CacheFormat)
@pytest.mark.parametrize("format", Format)
@pytest.mark.parametrize("name", ALL)
def test_bits_depend_on_nothing_else_in_any_pair_of_formats(
    name: str,
    format: Format,
    cache: CacheFormat,
    isa: str,
    packed_weights: dict[tuple[str, Format], PackedWeights],
) -> None:
    check_bits(ALL[name], packed_weights[name, format], cache, random.Random(f"{name} {isa} {format} {cache}"))


def check_bits(config: ModelConfig, weights: PackedWeights, cache: CacheFormat, chance: random.Random) -> None:
    lengths = [(30, 8), (3, 20), (1, 12), (17, 1), (29, 9)]
    alone = PackedTransformer(config, weights, 1, cache)
    expected = hidden_states(alone, lengths, 4, None)
    assert all(hidden.isfinite().all() for hidden in expected)
    for threads in (1, 2, 3):
        model = PackedTransformer(config, weights, threads, cache)
        found = hidden_states(model, lengths, chance.choice([1, 3, 16]), chance)
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True)), (cache, threads)
        model.close()
    alone.close()


@pytest.mark.parametrize("name", ["v2", "llama-gqa"])
def test_long_contexts_are_split_without_a_trace(
    name: str, packed_weights: dict[tuple[str, Format], PackedWeights]
) -> None:
    config = replace_fields(ALL[name], {"max_position_embeddings": 2048}, name)
    results = []
    for threads, seed in ((1, None), (2, None), (3, 1)):
        model = PackedTransformer(config, packed_weights[name, Format.Q8], threads, CacheFormat.BFLOAT16)
        results.append(hidden_states(model, [(1100, 3), (500, 30)], 16, random.Random(seed) if seed else None))
        model.close()
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_engine_says_the_same_whatever_the_schedule(
    name: str, packed_weights: dict[tuple[str, Format], PackedWeights]
) -> None:
    model = PackedTransformer(CONFIGS[name], packed_weights[name, Format.Q4_MIN], 2, CacheFormat.Q8)
    prompts = [prompt(length, seed=length) for length in (30, 3, 17, 1, 22)]
    greedy = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)

    def answers(**settings: int) -> list[list[int]]:
        engine = Engine(model, EngineConfig(page_size=4, **settings), eos_token_ids=())
        requests = [engine.create(ids, greedy) for ids in prompts]
        for request in requests:
            engine.add(request)
        while engine.has_work:
            engine.step()
            engine.check()
        return [request.output_token_ids for request in requests]

    expected = answers(cache_tokens=256, max_batch_tokens=64, max_requests=1)
    assert answers(cache_tokens=256, max_batch_tokens=64, max_requests=16) == expected
    assert answers(cache_tokens=256, max_batch_tokens=7, max_requests=5) == expected
    assert answers(cache_tokens=48, max_batch_tokens=9, max_requests=5) == expected  # with preemptions
    model.close()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens_T": torch.tensor([1, 96])}, "token 96 is outside 0..95"),
        ({"tokens_T": torch.tensor([1, -1])}, "token -1 is outside"),
        ({"tokens_T": torch.tensor([1])}, "disagree"),
        ({"tokens_T": torch.tensor([1.0, 2.0])}, "int64"),
        ({"positions_T": torch.tensor([0, 256])}, "position 256 is outside"),
        ({"positions_T": torch.tensor([-1, 0])}, "position -1 is outside 0..255"),
        ({"slots_T": torch.tensor([0, 32])}, "slot 32 is outside 0..31"),
        ({"slots_T": torch.tensor([-1, 0])}, "slot -1 is outside"),
        ({"page_table_BP": torch.tensor([[8]])}, "page 8 is outside 0..7"),
        ({"page_table_BP": torch.tensor([[-1]])}, "page -1 is outside"),
        ({"context_lengths": (5,)}, "query length <= context length <= 4"),
        ({"pages_LPSX": torch.zeros(2, 8, 4, 8)}, "new_pages"),
        ({"pages_LPSX": torch.zeros(2, 8, 4, 8, dtype=torch.uint8)}, "new_pages"),
        ({"num_generating": 2}, "2 of 1 requests"),
        ({"num_generating": -1}, "-1 of 1 requests"),
    ],
)
def test_bad_input_is_refused_before_any_kernel_runs(
    change: dict, words: str, packed_weights: dict[tuple[str, Format], PackedWeights]
) -> None:
    model = PackedTransformer(CONFIGS["llama-gqa"], packed_weights["llama-gqa", Format.Q8], 1, CacheFormat.BFLOAT16)
    cache = LatentCache(model, 8, 4)
    view = cache.view([[0]], [2], [2], 0)
    arguments = {"tokens_T": torch.tensor([1, 2]), "positions_T": torch.tensor([0, 1])}
    fields = {name: value for name, value in change.items() if name in CacheView.__dataclass_fields__}
    arguments |= {name: value for name, value in change.items() if name not in fields}
    with pytest.raises(ValueError, match=words):
        model(view=dataclasses.replace(view, **fields), **arguments)
    assert not cache.pages_LPSX.any()
    model.close()


def test_rotations_are_there_for_every_position_of_the_model(
    packed_weights: dict[tuple[str, Format], PackedWeights],
) -> None:
    config = replace_fields(CONFIGS["llama-gqa"], {"max_position_embeddings": 9000}, "long")
    model = PackedTransformer(config, packed_weights["llama-gqa", Format.Q8], 1, CacheFormat.BFLOAT16)
    cache = LatentCache(model, 9, 1000)

    def hidden_at(position: int) -> Tensor:
        view = cache.view([range(9)], [1], [position + 1], 1)
        return model(torch.tensor([5]), torch.tensor([position]), view).hidden_TD

    # the cache holds zeros: all that a position changes is the last token's own key, which its own query turns with
    near, far = hidden_at(4000), hidden_at(8999)
    assert far.isfinite().all() and not torch.equal(near, far)
    assert torch.equal(hidden_at(4000), near)  # the table has grown since
    with pytest.raises(ValueError, match=r"position 9000 is outside 0\.\.8999"):
        model(torch.tensor([5]), torch.tensor([9000]), cache.view([range(9)], [1], [9000], 1))
    model.close()


def test_hidden_states_of_another_shape_or_type_are_refused(
    packed_weights: dict[tuple[str, Format], PackedWeights],
) -> None:
    config = CONFIGS["llama-gqa"]
    model = PackedTransformer(config, packed_weights["llama-gqa", Format.Q8], 1, CacheFormat.BFLOAT16)
    for hidden in (torch.zeros(3, 8), torch.zeros(config.hidden_size), torch.zeros(3, config.hidden_size).double()):
        with pytest.raises(ValueError, match="hidden states must be float32"):
            model.predict(hidden)
    model.close()
    with pytest.raises(RuntimeError, match="closed"):
        model.predict(torch.zeros(3, config.hidden_size))
