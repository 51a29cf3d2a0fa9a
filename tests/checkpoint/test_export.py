"""What training wrote becomes a directory that transformers reads: equal logits, the same tokens."""

from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from tapwater.checkpoint import load_model
from tapwater.checkpoint.export import Which, export
from tapwater.checkpoint.store import Store
from tapwater.checkpoint.train_state import model_tensors
from tapwater.cli import main
from tapwater.config.model import to_plain
from tapwater.errors import CheckpointError
from tapwater.model import Sequences, Transformer
from tapwater.text import Tokenizer
from tiny import CONFIGS

LENGTH = 40
VOCAB_SIZE = 300  # the 256 bytes, BOS and EOS, and rows that no token has


@pytest.fixture
def tokenizer() -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({token: index for index, token in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<bos>", "<eos>"])
    return Tokenizer(backend, bos_token_id=256, eos_token_ids=(257,), chat_template=None, add_bos_token=True)


@pytest.fixture
def run(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    tokenizer.save(tmp_path / "run" / "tokenizer")
    return tmp_path / "run"


def model_of(name: str, seed: int) -> Transformer:
    model = Transformer.random(replace(CONFIGS[name], vocab_size=VOCAB_SIZE), seed)
    with torch.no_grad():
        for buffer in model.buffers():
            buffer.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(seed))
    return model


def save(run: Path, name: str, scores: dict[int, float]) -> None:
    store = Store(run / "checkpoints", len(scores), True)
    for step, score in scores.items():
        model = model_of(name, seed=step)
        store.save(step, model_tensors(model), {"model": to_plain(model.config)}, score)
    store.close()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("v2", torch.float32),
        ("v2-lite-yarn", torch.bfloat16),
        ("v3", torch.float32),
        ("v3", torch.bfloat16),
        ("llama-gqa", torch.float32),
    ],
)
def test_transformers_computes_the_same(name: str, dtype: torch.dtype, run: Path, tmp_path: Path) -> None:
    save(run, name, {5: 1.0})
    export(run, tmp_path / "out", run / "tokenizer", "latest", dtype)

    stored = {
        key: tensor for file in (tmp_path / "out").glob("*.safetensors") for key, tensor in load_file(file).items()
    }
    kinds = {key.endswith("e_score_correction_bias"): tensor.dtype for key, tensor in stored.items()}
    assert kinds == ({False: dtype, True: torch.float32} if name == "v3" else {False: dtype})
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype=torch.float32, attn_implementation="eager"
    ).eval()
    ids = torch.randint(0, VOCAB_SIZE, (LENGTH,), generator=torch.Generator().manual_seed(7))
    ours = model_of(name, seed=5).to(dtype).float()
    ours.load_state_dict(dict(model_of(name, seed=5).named_buffers()), strict=False)
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
        logits = ours.logits(ours(ids, Sequences((LENGTH,)).positions(), Sequences((LENGTH,))).hidden_TD)
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(logits, expected, atol=2e-5, rtol=0)

    text = "def tap(): return '今天 3.14'"
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"] == (
        Tokenizer.from_directory(run / "tokenizer").encode(text)
    )


@pytest.mark.parametrize(("which", "step"), [("latest", 3), ("best", 2), (1, 1)])
def test_any_checkpoint_kept_can_be_had(which: Which, step: int, run: Path, tmp_path: Path) -> None:
    save(run, "v3", {1: 2.0, 2: 1.0, 3: 3.0})
    with pytest.raises(SystemExit) as ended:
        main(["export", str(run), str(tmp_path / "out"), "--step", str(which), "--dtype", "float32"])
    assert not ended.value.code
    exported = load_model(tmp_path / "out", None).model.state_dict()
    for name, tensor in model_of("v3", seed=step).state_dict().items():
        assert torch.equal(exported[name], tensor), name


def test_a_checkpoint_itself_can_be_exported(run: Path, tmp_path: Path) -> None:
    save(run, "llama-gqa", {1: 2.0, 2: 1.0})
    path = run / "checkpoints" / "step-00000001"
    assert export(path, tmp_path / "out", run / "tokenizer", "latest", torch.float32).step == 1
    with pytest.raises(CheckpointError, match="is step 1, not 2"):
        export(path, tmp_path / "other", run / "tokenizer", 2, torch.float32)


def test_what_cannot_be_exported_is_one_clear_error(run: Path, tmp_path: Path, tokenizer: Tokenizer) -> None:
    def refused(words: str, which: Which = "latest", source: Path = run) -> None:
        with pytest.raises(CheckpointError, match=words):
            export(source, tmp_path / "out", run / "tokenizer", which, torch.float32)
        assert not (tmp_path / "out").exists()

    refused("is no run of training")
    save(run, "llama-gqa", {1: 2.0})
    refused("there is no step 2; complete steps: 1", 2)
    small = Transformer.random(CONFIGS["llama-gqa"], 0)
    store = Store(run / "small" / "checkpoints", 1, False)
    store.save(1, model_tensors(small), {"model": to_plain(small.config)}, None)
    store.close()
    refused(f"has {tokenizer.vocab_size} tokens, the model of .* embeds only 96", source=run / "small")
    refused("there is no best checkpoint", "best", run / "small")
    shards = next((run / "checkpoints" / "step-00000001").glob("*.distcp"))
    shards.write_bytes(shards.read_bytes()[:-1] + b"x")
    refused("is damaged: its sha256")
    (run / "checkpoints" / "step-00000001" / "manifest.json").unlink()
    refused("complete steps: none; .*step-00000001: has no manifest.json")
