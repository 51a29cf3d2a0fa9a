"""Multi-token prediction against transformers' own chain of modules, and its checkpoint layout."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3ForCausalLM
from transformers.modeling_layers import MtpModel

from tapwater.checkpoint.hf import load_hf, save_hf
from tapwater.config import BalanceConfig, replace_fields
from tapwater.errors import CheckpointError
from tapwater.model import Balance, Sequences, Transformer
from tiny import CONFIGS, prompt

CONFIG = replace_fields(CONFIGS["v3"], {"num_nextn_predict_layers": 2}, "mtp")


def random_model() -> Transformer:
    """Norms and routing biases random too, so that none can be left out unnoticed."""
    model = Transformer.random(CONFIG, seed=1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
        for buffer in model.buffers():
            buffer.normal_(0, 0.3, generator=generator)
    return model


@torch.no_grad()
def test_both_depths_are_those_of_transformers(tmp_path: Path) -> None:
    model = random_model()
    save_hf(model, tmp_path / "model")
    theirs = DeepseekV3ForCausalLM.from_pretrained(tmp_path / "model", attn_implementation="eager").eval()
    theirs._keys_to_ignore_on_load_unexpected = [r"model\.layers\.[34]\..*"]
    chain = MtpModel.from_pretrained(theirs).eval()

    ids = torch.tensor(prompt(12, 3))
    sequences = Sequences((12,))
    hidden = model(ids, sequences.positions(), sequences).hidden_TD
    expected = theirs.model(ids[None]).last_hidden_state
    torch.testing.assert_close(hidden, expected[0], atol=1e-5, rtol=0)
    for depth, ahead in enumerate(model.predict_ahead(hidden, ids, sequences), start=1):
        rows = 12 - depth
        positions = torch.arange(rows)[None]
        embedded = theirs.model.embed_tokens(ids[None, depth:])
        expected = chain.layers[depth - 1](
            embedded,
            expected[:, :rows],
            position_embeddings=theirs.model.rotary_emb(embedded, position_ids=positions),
            attention_mask=torch.full((rows, rows), float("-inf")).triu(1)[None, None],
            position_ids=positions,
            past_key_values=None,
        )
        assert ahead.rows.lengths == (rows,)
        torch.testing.assert_close(ahead.output.hidden_TD, expected[0], atol=2e-5, rtol=0)


def test_sequences_are_kept_apart_and_short_ones_drop_out() -> None:
    model = random_model()
    lengths = (8, 1, 2, 5)
    ids = torch.tensor(prompt(16, 3))
    balance = Balance(BalanceConfig(num_devices=4, max_devices=2), undropped_T=torch.ones(16, dtype=torch.bool))
    together = Sequences(lengths)
    found = model.predict_ahead(model(ids, together.positions(), together).hidden_TD, ids, together, balance)
    assert [ahead.rows.lengths for ahead in found] == [(7, 1, 4), (6, 3)]
    for depth, ahead in enumerate(found, start=1):
        assert ahead.output.balance is not None
        assert ahead.output.balance.load_E.sum() == 2 * sum(ahead.rows.lengths)  # 2 experts a row, no row invented
        alone = [part for part in ids.split(lengths) if len(part) > depth]
        for part, rows in zip(alone, ahead.output.hidden_TD.split(ahead.rows.lengths), strict=True):
            single = Sequences((len(part),))
            hidden = model(part, single.positions(), single).hidden_TD
            expected = model.predict_ahead(hidden, part, single)[depth - 1].output.hidden_TD
            torch.testing.assert_close(rows, expected, atol=1e-5, rtol=0)
    assert model.predict_ahead(torch.zeros(1, 64), ids[:1], Sequences((1,))) == []
    (model.logits(found[1].output.hidden_TD).sum() + found[1].output.balance.total).backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.mtp.parameters())


def test_checkpoint_layout_is_the_published_one(tmp_path: Path) -> None:
    model = Transformer.random(CONFIG, seed=1)
    save_hf(model, tmp_path / "one")
    names = load_file(tmp_path / "one" / "model.safetensors").keys()
    for name in (
        *("enorm.weight", "hnorm.weight", "eh_proj.weight", "shared_head.norm.weight", "shared_head.head.weight"),
        *("embed_tokens.weight", "self_attn.q_a_proj.weight", "mlp.experts.7.down_proj.weight"),
    ):
        assert f"model.layers.3.{name}" in names
        assert f"model.layers.4.{name}" in names
    save_hf(load_hf(tmp_path / "one"), tmp_path / "two")
    assert (tmp_path / "one/model.safetensors").read_bytes() == (tmp_path / "two/model.safetensors").read_bytes()


def test_a_dense_model_may_predict_ahead_too(tmp_path: Path) -> None:
    config = replace_fields(CONFIGS["llama-gqa"], {"num_nextn_predict_layers": 1}, "dense")
    save_hf(Transformer.random(config, seed=1), tmp_path / "model")
    assert load_hf(tmp_path / "model").config == config


def test_a_copy_that_differs_from_the_shared_tensor_is_refused(tmp_path: Path) -> None:
    save_hf(Transformer.random(CONFIG, seed=1), tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["model.layers.3.embed_tokens.weight"][0, 0] += 1
    save_file(tensors, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.3\.embed_tokens"):
        load_hf(tmp_path / "model")
