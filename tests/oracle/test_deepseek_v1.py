"""The first DeepSeekMoE (MHA and experts), which transformers lacks, put together from its parts."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import DeepseekV2Config, LlamaConfig, LlamaForCausalLM
from transformers.models.deepseek_v2.modeling_deepseek_v2 import DeepseekV2Moe

from tapwater.checkpoint.hf import _write_json, load_hf
from tapwater.config import ModelConfig, to_hf
from tapwater.model import Sequences

CONFIG = ModelConfig(
    model_type="deepseek",
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=128,
    n_routed_experts=8,
    n_shared_experts=2,
    num_experts_per_tok=3,
    moe_intermediate_size=20,
    first_k_dense_replace=1,
)


def assembled() -> LlamaForCausalLM:
    """Llama's attention and first layer, DeepSeek-V2's experts in the others."""
    common = {"vocab_size": 97, "hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(**common, num_hidden_layers=3, num_key_value_heads=4))
    moe = DeepseekV2Config(
        **common, n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=3, moe_intermediate_size=20
    )
    for layer in model.model.layers[1:]:
        layer.mlp = DeepseekV2Moe(moe)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.12, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(1.0)
    return model.eval()


def published_names(model: LlamaForCausalLM) -> dict[str, torch.Tensor]:
    named: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        prefix, fused, part = name.partition("experts.")
        if not fused or "shared_" in prefix:
            named[name] = tensor
            continue
        for expert, weight in enumerate(tensor):
            split = zip(("gate_proj", "up_proj"), weight.chunk(2), strict=True)
            for projection, rows in split if part == "gate_up_proj" else (("down_proj", weight),):
                named[f"{prefix}experts.{expert}.{projection}.weight"] = rows.clone()
    return named


@torch.no_grad()
def test_logits_equal_the_assembled_model(tmp_path: Path) -> None:
    theirs = assembled()
    _write_json(tmp_path / "config.json", to_hf(CONFIG))
    save_file(published_names(theirs), tmp_path / "model.safetensors", {"format": "pt"})
    ours = load_hf(tmp_path)
    ids = torch.randint(0, 97, (40,), generator=torch.Generator().manual_seed(7))
    sequences = Sequences((40,))
    logits = ours.logits(ours(ids, sequences.positions(), sequences).hidden_TD)
    expected = theirs(ids[None]).logits[0]
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
