"""What an ablation's file may say, and what it is refused for."""

from pathlib import Path

import pytest

from tapwater.config.ablation import load_ablation
from tapwater.errors import ConfigError

ROOT = Path(__file__).parent.parent.parent
BASE = """
[model]
model_type = "llama"
vocab_size = 300
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 64
head_dim = 16
[data]
corpus = "corpus"
sequence_length = 32
[batch]
sequences = 4
[train]
directory = "run"
steps = 8
"""
HEAD = 'base = "base.toml"\ndirectory = "out"\nsteps = 8\n'
MLA = 'model_type = "deepseek_v2", kv_lora_rank = 16, qk_nope_head_dim = 8, qk_rope_head_dim = 8, v_head_dim = 8'


def load(tmp_path: Path, text: str, *overrides: str):
    (tmp_path / "base.toml").write_text(BASE)
    (tmp_path / "ablation.toml").write_text(text)
    return load_ablation(tmp_path / "ablation.toml", overrides)


def test_variants_go_over_the_base_key_by_key(tmp_path: Path) -> None:
    variants = (
        f'[[variants]]\nname = "mha"\n[[variants]]\nname = "mla"\nwithout = ["model.head_dim"]\nmodel = {{ {MLA} }}\n'
    )
    found = load(tmp_path, HEAD + variants, "batch.sequences=2", "model.intermediate_size=64")
    mha, mla = found.variants
    assert mha.config == found.base
    assert mla.config.model.is_mla and mla.config.model.head_dim is None
    assert {each.config.batch.sequences for each in found.variants} == {2}
    assert mla.config.model.intermediate_size == 64
    assert [each.name for each in found.choose(["mla"])] == ["mla"]
    with pytest.raises(ConfigError, match="no variant 'mlaa'; did you mean 'mla'"):
        found.choose(["mlaa"])


ONE = '[[variants]]\nname = "a"\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (HEAD, r"at least one table \[\[variants\]\]"),
        (HEAD + "stepz = 1\n" + ONE, "unknown field 'stepz'; did you mean 'steps'"),
        (HEAD + "flops = 1e9\n" + ONE, "one of flops, minutes and steps, not flops and steps"),
        (HEAD.replace("steps = 8", "minutes = 8") + ONE, "minutes do not go with equal = 'active_flops'"),
        (HEAD + ONE + ONE, "two variants are named 'a'"),
        (HEAD + '[[variants]]\nname = "a/b"\n', "needs a name of letters"),
        (HEAD + ONE + "modl = { hidden_size = 8 }\n", "variant a: unknown field 'modl'; did you mean 'model'"),
        (HEAD + ONE + "model = { hidden = 8 }\n", "variant a: model: unknown field 'hidden'"),
        (HEAD + ONE + "train = { seed = 8 }\n", "train.seed must be the same for all variants"),
        (HEAD + ONE + "parallel = { dp = 2 }\n", "parallel.dp must be the same"),
        (HEAD + ONE + 'without = ["model.kv_lora_rank"]\n', "the base has no such key"),
    ],
)
def test_what_cannot_be_meant_is_named(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        load(tmp_path, text)


def test_the_shipped_variants_are_as_comparable_as_their_file_says() -> None:
    from tapwater.cost.counts import parameters

    found = load_ablation(ROOT / "configs" / "ablation.toml")
    models = {each.name: each.config.model for each in found.variants}
    active = {name: parameters(model).active_without_input_embedding for name, model in models.items()}
    total = {name: parameters(model).total for name, model in models.items()}
    for name in ("gqa", "mqa", "mla"):
        assert abs(total[name] / total["mha"] - 1) < 1e-3
    gate = 3 * 16 * models["moe"].hidden_size  # of three layers
    for name in ("moe", "moe-no-shared", "moe-2-shared"):
        assert abs(active[name] - active["mha"]) <= gate
        assert abs(total[name] / total["moe"] - 1) < 1e-3
    assert total["gate-greedy"] == total["gate-groups"] == total["gate-bias"] - 3 * 16
