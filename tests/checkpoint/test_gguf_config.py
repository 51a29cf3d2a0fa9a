"""GGUF metadata: what it says becomes the configuration; what cannot be told, or is not known, is refused by name."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from gguf_writing import Gguf, Published, deepseek_gguf, llama_gguf, publish
from oracle.variants import oracle
from tapwater.checkpoint.gguf import GgufFile
from tapwater.checkpoint.gguf_config import model_config
from tapwater.checkpoint.gguf_container import GgufContainer, StoredTensor
from tapwater.config import ModelConfig, preset, to_hf
from tapwater.errors import CheckpointError


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish(oracle("llama/gqa"), tmp_path_factory.mktemp("gguf") / "llama")


@pytest.fixture(scope="session")
def v2(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish(oracle("v2/yarn"), tmp_path_factory.mktemp("gguf") / "v2")


@pytest.fixture(scope="session")
def v3(tmp_path_factory: pytest.TempPathFactory) -> Published:
    return publish(oracle("v3/noaux"), tmp_path_factory.mktemp("gguf") / "v3")


def headers_only(published: ModelConfig, *, absorbed: bool) -> Gguf:
    """The metadata of a published model, its tensors left out but for the two that shape the configuration."""
    config = to_hf(published)
    scaling = config.pop("rope_scaling")
    scaling["rope_type"] = scaling.pop("type")
    config["rope_parameters"] = scaling | {"rope_theta": config["rope_theta"]}
    config.setdefault("q_lora_rank", None)
    config.setdefault("tie_word_embeddings", False)
    names = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")
    placeholders = {name: torch.zeros(1) for name in names}
    gguf = deepseek_gguf(Published(Path(), config, placeholders), absorbed)
    gguf.metadata["tokenizer.ggml.bos_token_id"] = published.bos_token_id
    gguf.metadata["tokenizer.ggml.eos_token_id"] = published.eos_token_id
    return gguf


def read(gguf: Gguf, published: ModelConfig) -> ModelConfig:
    stored = StoredTensor(GGMLQuantizationType.F32, (published.vocab_size, published.hidden_size), 0)
    tensors = {"token_embd.weight": stored, "output.weight": stored}
    metadata = {"general.architecture": gguf.architecture, **gguf.metadata}
    return model_config(GgufContainer(Path("published.gguf"), metadata, tensors))


@pytest.mark.parametrize("with_groups", [True, False], ids=["groups stored", "before groups were stored"])
@pytest.mark.parametrize("absorbed", [True, False])
@pytest.mark.parametrize("name", ["deepseek-v2", "deepseek-v2-lite", "deepseek-v3"])
def test_published_models(name: str, absorbed: bool, with_groups: bool) -> None:
    published = dataclasses.replace(preset(name), num_nextn_predict_layers=0)  # the converter leaves MTP out
    gguf = headers_only(published, absorbed=absorbed)
    if not with_groups:
        del gguf.metadata["deepseek2.expert_group_count"], gguf.metadata["deepseek2.expert_group_used_count"]
    assert read(gguf, published) == published


def test_groups_of_an_unknown_model_cannot_be_told() -> None:
    published = preset("deepseek-v2")
    gguf = headers_only(published, absorbed=True)
    gguf.metadata |= {"deepseek2.expert_count": 128}
    del gguf.metadata["deepseek2.expert_group_count"], gguf.metadata["deepseek2.expert_group_used_count"]
    with pytest.raises(CheckpointError, match=r"published\.gguf: metadata deepseek2\.expert_group_count is missing"):
        read(gguf, published)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tokenizer.ggml.eos_token_id": 5, "tokenizer.ggml.eot_token_id": 5}, 5),
        ({"tokenizer.ggml.eos_token_id": 5, "tokenizer.ggml.eot_token_id": 7}, (5, 7)),
        (
            {
                "tokenizer.ggml.eos_token_id": 5,
                "tokenizer.ggml.eot_token_id": 7,
                "tokenizer.ggml.eom_token_id": 9,
            },
            (5, 7, 9),
        ),
    ],
)
def test_end_tokens(changes: dict[str, int], expected: object, llama: Published, tmp_path: Path) -> None:
    path = llama_gguf(llama, **changes).write(tmp_path / "model.gguf")
    assert GgufFile(path).config.eos_token_id == expected


def test_absent_metadata_has_llama_cpps_defaults(llama: Published, tmp_path: Path) -> None:
    gguf = llama_gguf(llama)
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count", "rope.freq_base"):
        del gguf.metadata[f"llama.{key}"]
    for key in ("llama.vocab_size", "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"):
        del gguf.metadata[key]
    config = GgufFile(gguf.write(tmp_path / "model.gguf")).config
    assert (config.vocab_size, config.attention_head_dim, config.rope_theta) == (97, 12, 10000.0)
    assert (config.bos_token_id, config.eos_token_id) == (None, None)


def test_float32_stands_for_its_shortest_decimal(llama: Published, tmp_path: Path) -> None:
    gguf = llama_gguf(llama, **{"llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 500000.0})
    config = GgufFile(gguf.write(tmp_path / "model.gguf")).config
    assert (config.rms_norm_eps, config.rope_theta) == (1e-5, 500000.0)


def refused(gguf: Gguf, tmp_path: Path) -> str:
    path = gguf.write(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError) as error:
        GgufFile(path)
    assert str(error.value).startswith(f"{path}: ")
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("general.type", "adapter", "general.type is 'adapter'; only 'model' is possible"),
        ("general.quantization_version", 1, "general.quantization_version is 1; only 2"),
        ("split.count", 3, "split.count = 3: this is one part of several"),
        ("llama.rope.scaling.type", "linear", "llama.rope.scaling.type is 'linear'; only 'none'"),
        ("llama.rope.scaling.factor", 4.0, "llama.rope.scaling.factor is not supported"),
        ("llama.attention.sliding_window", 4096, "llama.attention.sliding_window is not supported"),
        ("llama.logit_scale", 0.5, "llama.logit_scale is not supported"),
        ("llama.expert_count", 8, "llama.expert_count is 8; only 0"),
        ("llama.rope.dimension_count", 6, "llama.rope.dimension_count is 6; only 12"),
        ("llama.attention.value_length", 6, "llama.attention.value_length is 6; only 12"),
        ("llama.vocab_size", 96, "llama.vocab_size is 96; only 97"),
        ("llama.feed_forward_length", [80, 80, 80], "llama.feed_forward_length is a list of 3, expected one int"),
        ("llama.block_count", "three", "llama.block_count is 'three', expected one int"),
        ("llama.block_count", 4096, "tensor blk.3.attn_q.weight is missing"),
        ("llama.block_count", 2, "unexpected tensor blk.2.attn_k.weight and 8 more"),
        ("llama.rope.freq_base", float("inf"), "llama.rope.freq_base is inf, expected one float"),
        ("llama.attention.head_count", 0, "num_attention_heads must be positive"),
        ("llama.attention.head_count_kv", 3, "num_attention_heads 4 is not a multiple of num_key_value_heads 3"),
        ("llama.embedding_length", 96, "tensor token_embd.weight has shape [97, 48], the metadata says [97, 96]"),
        ("llama.context_length", 0, "max_position_embeddings must be positive"),
        ("tokenizer.ggml.tokens", ["a", "b"], "tokenizer.ggml.tokens lists 2 tokens, token_embd.weight has 97 rows"),
        ("tokenizer.ggml.eos_token_id", 97, "bos_token_id/eos_token_id 97 is outside vocab_size 97"),
        ("tokenizer.ggml.eos_token_id", "</s>", "tokenizer.ggml.eos_token_id is '</s>', expected one int"),
    ],
)
def test_llama_refuses(key: str, value: Any, message: str, llama: Published, tmp_path: Path) -> None:
    assert message in refused(llama_gguf(llama, **{key: value}), tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rope.scaling.type", "linear", "rope.scaling.type = 'linear' is not supported, only 'yarn' and 'none'"),
        ("rope.scaling.type", "none", "rope.scaling.factor is not supported"),
        ("rope.scaling.factor", 0.5, "deepseek2.rope.scaling is impossible"),
        ("rope.scaling.yarn_log_multiplier", 0.0, "rope.scaling.yarn_log_multiplier is 0.0: mscale cannot be told"),
        ("rope.scaling.yarn_attn_factor", 1.2, "rope.scaling.yarn_attn_factor is 1.2; only 1.0"),
        ("rope.scaling.yarn_ext_factor", 0.5, "rope.scaling.yarn_ext_factor is 0.5; only 1.0"),
        ("rope.scaling.attn_factor", 1.0, "rope.scaling.attn_factor is not supported"),
        ("expert_gating_func", 4, "expert_gating_func = 4 is not supported"),
        ("expert_gating_func", 2, "tensor blk.1.exp_probs_b.bias is missing"),
        ("expert_weights_scale", -1.0, "expert_weights_scale is -1.0, expected a positive number"),
        ("expert_count", 65536, "tensor blk.1.ffn_gate_inp.weight has shape [8, 48], the metadata says [65536, 48]"),
        ("expert_used_count", 9, "num_experts_per_tok 9 exceeds n_routed_experts 8"),
        ("expert_shared_count", 3, "tensor blk.1.ffn_gate_shexp.weight has shape [20, 48]"),
        ("expert_group_count", 3, "n_group 3 does not divide n_routed_experts 8"),
        ("leading_dense_block_count", 2, "tensor blk.1.ffn_gate.weight is missing"),
        ("nextn_predict_layers", 1, "tensor blk.2.nextn.enorm.weight is missing"),
        ("attention.key_length", 64, "attention.key_length is 64; only 32"),
        ("attention.key_length_mla", 8, "qk_nope_head_dim must be positive"),
        ("attention.head_count_kv", 2, "attention.head_count_kv is 2; only 1"),
        ("attention.scale", 0.1, "attention.scale is not supported"),
        ("attention.indexer.top_k", 64, "attention.indexer.top_k is not supported"),
    ],
)
def test_deepseek_refuses(key: str, value: Any, message: str, v2: Published, tmp_path: Path) -> None:
    assert message in refused(deepseek_gguf(v2, **{f"deepseek2.{key}": value}), tmp_path)


@pytest.mark.parametrize(
    "key", ["block_count", "embedding_length", "attention.kv_lora_rank", "rope.dimension_count", "expert_used_count"]
)
def test_missing_metadata(key: str, v2: Published, tmp_path: Path) -> None:
    gguf = deepseek_gguf(v2)
    del gguf.metadata[f"deepseek2.{key}"]
    assert f"metadata deepseek2.{key} is missing" in refused(gguf, tmp_path)


def test_a_biased_gate_needs_its_function(v3: Published, tmp_path: Path) -> None:
    gguf = deepseek_gguf(v3)
    del gguf.metadata["deepseek2.expert_gating_func"]
    assert "metadata deepseek2.expert_gating_func is missing, though the gates have a bias" in refused(gguf, tmp_path)


def test_a_bias_without_a_sigmoid(v3: Published, tmp_path: Path) -> None:
    gguf = deepseek_gguf(v3, **{"deepseek2.expert_gating_func": 1})
    assert "unexpected tensor blk.1.exp_probs_b.bias and 1 more" in refused(gguf, tmp_path)


def test_other_architectures(llama: Published, tmp_path: Path) -> None:
    gguf = llama_gguf(llama)
    gguf.architecture = "qwen2"
    message = "metadata general.architecture = 'qwen2' is not supported, only 'llama' and 'deepseek2'"
    assert message in refused(gguf, tmp_path)


def test_llama_3_1_rope(llama: Published, tmp_path: Path) -> None:
    gguf = llama_gguf(llama)
    gguf.tensors["rope_freqs.weight"] = np.ones(6, np.float32)
    assert "tensor rope_freqs.weight means Llama-3.1's rope scaling, which is not supported" in refused(gguf, tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("token_embd.weight", "tensor token_embd.weight is missing"),
        ("output_norm.weight", "tensor output_norm.weight is missing"),
        ("blk.1.attn_v_b.weight", "tensor blk.1.attn_v_b.weight is missing"),
        ("blk.1.attn_k_b.weight", "tensor blk.1.attn_kv_b.weight is missing"),
        ("blk.2.ffn_down_exps.weight", "tensor blk.2.ffn_down_exps.weight is missing"),
    ],
)
def test_missing_tensors(name: str, message: str, v2: Published, tmp_path: Path) -> None:
    gguf = deepseek_gguf(v2)
    del gguf.tensors[name]
    assert message in refused(gguf, tmp_path)


def test_unexpected_tensors(llama: Published, tmp_path: Path) -> None:
    gguf = llama_gguf(llama)
    gguf.tensors["blk.0.attn_q.bias"] = np.zeros(48, np.float32)
    assert "unexpected tensor blk.0.attn_q.bias; the model has no use for it" in refused(gguf, tmp_path)
