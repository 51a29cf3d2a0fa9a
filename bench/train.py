"""How fast a training step is, beside transformers on the same shapes, tokens and arithmetic, in one process.

Every round times one step of each, in turn: forward, backward, AdamW on float32 weights. Ours is `tapwater train`'s own
step, load counts included; the peer is transformers' model under autocast with fused AdamW, its experts by
grouped_mm, and torch.compile unless --no-compile. Both clip, and both run where freed memory is kept for the next
step. MFU is a share of the fastest product measured here, as in training.

    python bench/train.py                        # both shapes, bf16, five rounds
    python bench/train.py --shape moe --precision float32 --rounds 3
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers

from report import provenance, save
from tapwater.config import ModelConfig, PretrainConfig, to_hf
from tapwater.config.parse import from_mapping
from tapwater.cost.counts import parameters, training_flops_per_token
from tapwater.data.batch import Batch
from tapwater.model import Transformer
from tapwater.parallel import join
from tapwater.train.allocator import keep_freed_memory
from tapwater.train.masters import Masters
from tapwater.train.optim import Optimizers
from tapwater.train.probe import matmul_peak
from tapwater.train.step import Step

MOE = {
    "model_type": "deepseek_v2", "vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1408,
    "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8, "max_position_embeddings": 2048,
    "kv_lora_rank": 128, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64, "n_routed_experts": 32,
    "n_shared_experts": 1, "num_experts_per_tok": 4, "moe_intermediate_size": 256, "first_k_dense_replace": 1,
    "n_group": 1, "topk_group": 1, "initializer_range": 0.02, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
DENSE = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048,
    "tie_word_embeddings": True, "initializer_range": 0.02, "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
SHAPES = {"moe": (MOE, 8), "dense": (DENSE, 4)}  # and rows
LENGTH = 512

CLIP_NORM = 1.0  # both clip: it is transformers' own trainer's default too

StepTimer = Callable[[Batch], None]


def ours(tables: dict[str, Any], rows: int, precision: str) -> StepTimer:
    """The step `tapwater train` makes, as one micro-batch."""
    config = from_mapping(
        PretrainConfig,
        {
            "model": tables,
            "data": {"corpus": "none", "sequence_length": LENGTH},
            "batch": {"sequences": rows, "micro_sequences": rows},
            "train": {"directory": "none", "steps": 1, "precision": precision},
            "optimizer": {"lr": 1e-4, "clip_norm": CLIP_NORM},
            "balance": {"num_devices": 1, "max_devices": 1},
        },
        "bench",
    )
    world = join(config.parallel)
    model = Transformer.random(config.model, 0)
    masters = Masters(model, precision)
    step = Step(model, None, masters, Optimizers(masters.named.items(), config.optimizer), world, config)
    return lambda batch: float(step.run(batch, 1.0, 0).losses.ce)


def peer(config: ModelConfig, precision: str, compiled: bool) -> StepTimer:
    """transformers' model and torch's optimizer, as fast as they go here."""
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**to_hf(config)), attn_implementation="sdpa"
    )
    if config.is_moe:
        model.set_experts_implementation("grouped_mm")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    forward = torch.compile(model) if compiled else model

    def step(batch: Batch) -> None:
        tokens, targets = torch.from_numpy(batch.tokens_BS), torch.from_numpy(batch.targets_BS)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = forward(input_ids=tokens, labels=tokens, shift_labels=targets, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        float(loss.detach())

    return step


def random_batch(config: ModelConfig, rows: int, seed: int) -> Batch:
    """Rows of one document each."""
    tokens = np.random.default_rng(seed).integers(2, config.vocab_size, (rows, LENGTH + 1))
    mask, source = np.ones((rows, LENGTH), np.bool_), np.zeros((rows, LENGTH), np.int16)
    return Batch(tokens[:, :-1].copy(), tokens[:, 1:].copy(), mask, ((LENGTH,),) * rows, source)


def measure(name: str, precision: str, rounds: int, compiled: bool) -> dict[str, Any]:
    """Median seconds of a step of each, and what follows from them."""
    tables, rows = SHAPES[name]
    config = from_mapping(ModelConfig, tables, name)
    peak = matmul_peak(
        torch.bfloat16 if precision == "bf16" else torch.float32, config, rows * LENGTH, torch.device("cpu")
    )
    timers = {"tapwater": ours(tables, rows, precision), "transformers": peer(config, precision, compiled)}
    seconds: dict[str, list[float]] = {who: [] for who in timers}
    for number in range(rounds + 2):  # two to warm up: the first compiles
        batch = random_batch(config, rows, number)
        for who, timer in timers.items():
            start = time.perf_counter()
            timer(batch)
            seconds[who].append(time.perf_counter() - start)
    tokens = rows * LENGTH
    flops = training_flops_per_token(config, LENGTH).total
    medians = {who: statistics.median(each[2:]) for who, each in seconds.items()}
    counted = parameters(config)
    return {
        "shape": name,
        "parameters": counted.total,
        "active": counted.active_without_input_embedding,
        "precision": precision,
        "peak_gflops": peak / 1e9,
        "first_step_s": {who: each[0] for who, each in seconds.items()},
        "seconds": {who: each[2:] for who, each in seconds.items()},
        "tokens_per_s": {who: tokens / median for who, median in medians.items()},
        "mfu": {who: tokens * flops / median / peak for who, median in medians.items()},
        "ratio": medians["transformers"] / medians["tapwater"],
        "ratio_by_round": [b / a for a, b in zip(*(seconds[who][2:] for who in timers), strict=True)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), nargs="+", default=list(SHAPES))
    parser.add_argument("--precision", choices=["bf16", "float32"], default="bf16")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out of the peer")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as `tapwater train` does; the peer has it too
    found = [measure(name, options.precision, options.rounds, not options.no_compile) for name in options.shape]
    print("| shape | precision | tapwater tokens/s | transformers | ratio | rounds | MFU | MFU |")
    print("|---|---|---|---|---|---|---|---|")
    for each in found:
        rates, mfu = each["tokens_per_s"], each["mfu"]
        low, high = min(each["ratio_by_round"]), max(each["ratio_by_round"])
        print(
            f"| {each['shape']} | {each['precision']} | {rates['tapwater']:.0f} | {rates['transformers']:.0f} "
            f"| {each['ratio']:.2f} | {low:.2f} to {high:.2f} | {mfu['tapwater']:.0%} | {mfu['transformers']:.0%} |"
        )
    about = provenance()
    print("\n".join(f"{key}: {value}" for key, value in about.items()))
    print(f"written to {save('train', {**about, 'threads': options.threads, 'measured': found})}")


if __name__ == "__main__":
    main()
