"""A real model from a real GGUF: perplexity and greedy answers against transformers reading the same file."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel

from tapwater.checkpoint import load_packed
from tapwater.checkpoint.gguf import GgufFile
from tapwater.checkpoint.weights import build
from tapwater.config import EngineConfig
from tapwater.engine import SamplingParams
from tapwater.engine.latent_cache import LatentCache
from tapwater.llm import LLM, available_cores
from tapwater.model import PackedTransformer, Sequences, Transformer
from tapwater.ops.cache_format import CacheFormat
from tapwater.ops.native import is_built

WINDOW = 512
NEW = 40
PROMPTS = [
    "What is the capital of France?",
    "Write a Python function that adds two numbers.",
    "Explain gravity to a child.",
    "List three colours.",
    "Who wrote Romeo and Juliet?",
    "What is 7 times 8?",
    "Translate 'good morning' into Spanish.",
    "Why is the sky blue?",
    "Give me a recipe for pancakes.",
    "What does HTTP stand for?",
    "Tell me a short story about a fox.",
    "What is the largest planet?",
    "How do I reverse a list in Python?",
    "Name a famous painter.",
    "What is photosynthesis?",
    "Write a haiku about rain.",
    "What is the difference between a list and a tuple?",
    "How many days are in a leap year?",
    "Summarise the plot of Cinderella.",
    "What is an apple?",
    "你好，你是谁？",
    "Complete: roses are red,",
]


@pytest.fixture(scope="module")
def theirs(smollm2_path: Path) -> PreTrainedModel:
    model = AutoModelForCausalLM.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32, attn_implementation="sdpa"
    )
    return model.eval()


@pytest.fixture(scope="module")
def ours(smollm2_path: Path) -> Transformer:
    file = GgufFile(smollm2_path)
    return build(file.config, file, torch.float32).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def llm(smollm2_path: Path) -> Iterator[LLM]:
    llm = LLM.load(smollm2_path, EngineConfig(backend="torch"))
    yield llm
    llm.close()


def licence(llm: LLM) -> Tensor:
    text = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    ids = torch.tensor(llm.encode(text)[: 4 * WINDOW])
    assert len(ids) == 4 * WINDOW
    return ids


def test_perplexity_of_a_licence_text(theirs: PreTrainedModel, ours: Transformer, llm: LLM) -> None:
    ids = licence(llm)
    our_loss = their_loss = 0.0
    for window in ids.split(WINDOW):
        hidden = ours(window, Sequences((WINDOW,)).positions(), Sequences((WINDOW,))).hidden_TD
        our_loss += float(cross_entropy(ours.logits(hidden)[:-1], window[1:])) / 4
        with torch.no_grad():
            their_loss += float(cross_entropy(theirs(window[None]).logits[0, :-1], window[1:])) / 4
    our_perplexity, their_perplexity = math.exp(our_loss), math.exp(their_loss)
    print(f"perplexity: ours {our_perplexity:.4f}, transformers {their_perplexity:.4f}")
    assert our_perplexity == pytest.approx(their_perplexity, rel=0.01)
    assert our_perplexity < 20  # a model that reads English


@pytest.mark.parametrize("asked", [PROMPTS[:6], pytest.param(PROMPTS, marks=pytest.mark.slow)], ids=["some", "all"])
def test_greedy_answers_are_those_of_transformers(theirs: PreTrainedModel, llm: LLM, asked: list[str]) -> None:
    prompts = [llm.encode_chat([{"role": "user", "content": prompt}]) for prompt in asked]
    completions = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=NEW))  # all in one batch
    end = set(llm.tokenizer.eos_token_ids)
    for prompt, ids, completion in zip(asked, prompts, completions, strict=True):
        answer = theirs.generate(
            torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, eos_token_id=sorted(end), pad_token_id=0
        )[0, len(ids) :].tolist()
        assert list(completion.token_ids) == answer, prompt


@pytest.mark.skipif(not is_built(), reason="the native kernels are not built")
def test_native_perplexity_is_that_of_float32(smollm2_path: Path, ours: Transformer, llm: LLM) -> None:
    """Activations in 8 bits, and each kind of cache, cost next to nothing: on one context of 2,048 tokens."""
    ids = licence(llm)
    sequence = Sequences((len(ids),))
    hidden = ours(ids, sequence.positions(), sequence).hidden_TD
    expected = math.exp(cross_entropy(ours.logits(hidden)[:-1], ids[1:]))
    packed = load_packed(smollm2_path, None)
    assert not packed.notes  # nothing was requantised
    page_size = 16
    for format, most in (("float32", 0.005), ("bfloat16", 0.005), ("q8", 0.005), ("q6", 0.01)):
        model = PackedTransformer(packed.config, packed.weights, available_cores(), CacheFormat(format))
        cache = LatentCache(model, len(ids) // page_size, page_size)
        losses = []
        for start in range(0, len(ids), WINDOW):
            stop = start + WINDOW
            view = cache.view([list(range(stop // page_size))], [WINDOW], [stop], 0)
            logits = model.logits(model(ids[start:stop], torch.arange(start, stop), view).hidden_TD)
            targets = ids[start + 1 : stop + 1]
            losses.append(cross_entropy(logits[: len(targets)], targets, reduction="sum"))
        model.close()
        found = math.exp(sum(losses) / (len(ids) - 1))
        print(f"perplexity: {format} cache {found:.4f}, float32 {expected:.4f} ({found / expected - 1:+.2%})")
        assert abs(found / expected - 1) < most, format
