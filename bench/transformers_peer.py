"""transformers as a peer, in this process: a llama GGUF file with its weights, other architectures with random ones."""

import time
from pathlib import Path
from typing import Literal

import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn

from measure import FIRST_TOKEN
from tapwater.config import ModelConfig, to_hf
from tapwater.cost.counts import expand_kv_elements, parameters
from workloads import NotMeasuredError, Workload, cached_tokens

LONGEST_PROMPT = 512  # longer ones take minutes
WIDTH = 0.035  # weights are drawn from -WIDTH..WIDTH: a standard deviation of 0.02


class TransformersPeer:
    """`AutoModelForCausalLM` with its defaults; greedy decoding over its own cache."""

    def __init__(self, gguf: Path, config: ModelConfig, dtype: Literal["float32", "bfloat16"], threads: int) -> None:
        self.name = f"transformers {dtype}"
        self.build = transformers.__version__
        self._threads = threads
        self._dtype = getattr(torch, dtype)
        self._config = config
        if config.model_type == "llama":
            self._model = transformers.AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=self._dtype
            )
        else:
            self._model = _random_model(config, self._dtype)
        self._model.eval()
        self.measure(Workload("warm-up", prompt=32, new=2))

    def command(self, workload: Workload) -> list[str]:
        return ["transformers", type(self._model).__name__, f"{workload.batch} x {workload.prompt} + {workload.new}"]

    def measure(self, workload: Workload) -> float:
        """NotMeasuredError for long prompts."""
        if workload.prompt > LONGEST_PROMPT:
            raise NotMeasuredError(f"is not measured on prompts longer than {LONGEST_PROMPT}")
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads)
        try:
            return self._measure(workload)
        finally:
            torch.set_num_threads(before)

    def read_bytes(self, workload: Workload) -> int:
        weights = parameters(self._config).active_without_input_embedding
        cached = self._config.kv_elements_per_token
        if self._config.is_mla:  # it caches expanded keys and values
            cached = expand_kv_elements(self._config)
        return (weights + cached * cached_tokens(workload)) * self._dtype.itemsize

    @torch.inference_mode()
    def _measure(self, workload: Workload) -> float:
        tokens = torch.randint(FIRST_TOKEN, self._config.vocab_size, (workload.batch, workload.prompt))
        start = time.perf_counter()
        output = self._model(tokens, use_cache=True, logits_to_keep=1)
        if workload.new == 0:
            return workload.prompt / (time.perf_counter() - start)
        start = time.perf_counter()
        for _ in range(workload.new):
            output = self._model(_likeliest(output.logits), past_key_values=output.past_key_values, use_cache=True)
        return workload.batch * workload.new / (time.perf_counter() - start)


def _likeliest(logits_BTW: Tensor) -> Tensor:
    return logits_BTW[:, -1:].argmax(-1)


def _random_model(config: ModelConfig, dtype: torch.dtype) -> nn.Module:
    """Even, small weights, drawn once: transformers' own initialisation would take minutes."""
    hf_config = transformers.AutoConfig.for_model(**to_hf(config))
    with init_empty_weights(include_buffers=False):
        model = transformers.AutoModelForCausalLM.from_config(hf_config, dtype=dtype)
    for module in model.modules():
        for name, empty in list(module.named_parameters(recurse=False)):
            drawn = torch.ones(empty.shape, dtype=dtype)
            if empty.ndim > 1:
                drawn.uniform_(-WIDTH, WIDTH)
            setattr(module, name, nn.Parameter(drawn, requires_grad=False))
    return model
