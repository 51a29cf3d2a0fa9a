"""The whole way on a small scale: raw files, corpus, training with infills, checkpoint, export, an answer."""

import json
import random
from pathlib import Path

import pytest
import transformers

from tapwater.cli import main
from tapwater.config import EngineConfig
from tapwater.engine import SamplingParams
from tapwater.llm import LLM

SOURCE = '''"""Module number {number}, which adds {name} to what it is given.

It is for {words}.
"""

LIMIT_{number} = {number}


def add_{name}(values):
    """Add {number} to every one of the values and give back the sum of {name}."""
    total = {number}
    for value in values:
        total += value * LIMIT_{number}
    return total


def show_{name}(values, width={number}):
    return f"{{add_{name}(values):>{{width}}}} {name}"
'''

CORPUS = """directory = "{home}/corpus"
[[sources]]
name = "code"
kind = "source"
paths = ["{home}/raw"]
include = [".py"]
licence = "CC0-1.0"
fim = true
[duplicates]
near = "none"
[filters]
min_chars = 50
[fim]
rate = 0.5
[heldout]
share = 0.2
[tokenizer]
vocab_size = 512
"""

RUN = """[model]
model_type = "deepseek_v3"
vocab_size = 512
hidden_size = 32
intermediate_size = 48
num_hidden_layers = 2
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 128
kv_lora_rank = 16
qk_nope_head_dim = 8
qk_rope_head_dim = 8
v_head_dim = 8
n_routed_experts = 4
n_shared_experts = 1
num_experts_per_tok = 2
moe_intermediate_size = 16
first_k_dense_replace = 1
n_group = 2
topk_group = 1
topk_method = "noaux_tc"
scoring_func = "sigmoid"
norm_topk_prob = true
bos_token_id = 0
eos_token_id = 1
[data]
corpus = "{home}/corpus"
sequence_length = 128
[batch]
sequences = 2
micro_sequences = 2
[train]
directory = "{home}/run"
steps = 6
precision = "bf16"
usd_per_hour = "0.05"
threads = 1
[schedule]
warmup_steps = 1
[balance]
num_devices = 2
max_devices = 1
bias_step = 0.001
[checkpoint]
every_steps = 3
[evaluation]
every_steps = 3
sequences = 8
fim_documents = 2
fim_max_tokens = 8
"""


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exited:
        main(list(arguments))
    return int(exited.value.code or 0)


def test_from_raw_files_to_an_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chance = random.Random(0)
    (tmp_path / "raw").mkdir()
    for number in range(60):
        name = "".join(chr(97 + (number * factor) % 26) for factor in (1, 3, 7, 11, 5))
        words = ", ".join("".join(chance.choices("abcdefghijklmnop", k=7)) for _ in range(12))
        text = SOURCE.format(number=number, name=name, words=words)
        (tmp_path / "raw" / f"{number}.py").write_text(text, encoding="utf-8")
    (tmp_path / "corpus.toml").write_text(CORPUS.format(home=tmp_path), encoding="utf-8")
    (tmp_path / "run.toml").write_text(RUN.format(home=tmp_path), encoding="utf-8")
    assert run("data", "build", str(tmp_path / "corpus.toml")) == 0
    assert run("data", "baselines", str(tmp_path / "corpus")) == 0
    capsys.readouterr()
    assert run("train", str(tmp_path / "run.toml"), "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["step"] == facts["total_steps"] == 6 and 0 < facts["bits_per_byte"] < 10

    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "zstd" in page and "n-gram" in page
    export = tmp_path / "run" / "export"
    llm = LLM.load(export, EngineConfig(threads=1))
    try:
        answer = llm.generate(["def add"], SamplingParams(max_tokens=4, temperature=0))[0]
    finally:
        llm.close()
    model = transformers.AutoModelForCausalLM.from_pretrained(export)
    tokenizer = transformers.AutoTokenizer.from_pretrained(export)
    prompt = tokenizer("def add", return_tensors="pt")
    assert prompt["input_ids"][0, 0] == 0  # BOS, as in training
    assert answer.usage.prompt_tokens == prompt["input_ids"].shape[1]
    assert model.config.model_type == "deepseek_v3"


def test_a_run_that_cannot_be_says_so_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.toml").write_text(RUN.format(home=tmp_path), encoding="utf-8")
    assert run("train", str(tmp_path / "run.toml")) == 1
    assert "manifest.json" in capsys.readouterr().err
    assert run("train", str(tmp_path / "run.toml"), "model.hidden=3") == 1
    assert "hidden_size" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
