"""A real model from a real GGUF: perplexity and greedy answers against transformers reading the same file."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, PreTrainedModel

from tapwater.checkpoint.gguf import GgufFile
from tapwater.checkpoint.weights import build
from tapwater.config import EngineConfig
from tapwater.engine import SamplingParams
from tapwater.llm import LLM
from tapwater.model import Sequences, Transformer

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


def test_perplexity_of_a_licence_text(theirs: PreTrainedModel, ours: Transformer, llm: LLM) -> None:
    text = (Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8")
    ids = torch.tensor(llm.encode(text)[: 4 * WINDOW])
    assert len(ids) == 4 * WINDOW
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


def test_greedy_answers_are_those_of_transformers(theirs: PreTrainedModel, llm: LLM) -> None:
    prompts = [llm.encode_chat([{"role": "user", "content": prompt}]) for prompt in PROMPTS]
    completions = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=NEW))  # all in one batch
    end = set(llm.tokenizer.eos_token_ids)
    for prompt, ids, completion in zip(PROMPTS, prompts, completions, strict=True):
        answer = theirs.generate(
            torch.tensor([ids]), max_new_tokens=NEW, do_sample=False, eos_token_id=sorted(end), pad_token_id=0
        )[0, len(ids) :].tolist()
        assert list(completion.token_ids) == answer, prompt
