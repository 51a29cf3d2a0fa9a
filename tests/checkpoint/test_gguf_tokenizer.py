"""The tokenizer inside a GGUF file encodes as the one it was made from; kinds not known are refused by name."""

from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from gguf_writing import CORPUS, Gguf, llama_gguf, publish, tokenizer_metadata, train_bpe
from oracle.variants import oracle
from tapwater.checkpoint.gguf import GgufFile
from tapwater.errors import CheckpointError
from tapwater.text import Tokenizer

CONTROL = ["<|bos|>", "<|eos|>", "<｜User｜>"]
VOCAB_SIZE = 512
TEXTS = [
    *CORPUS[:4],
    "",
    "Hello 123   456 world",
    "x\n\n 7  \r\n\t12,500.00 (it's)",
    "<|bos|>system<|eos|>\n<｜User｜>hi</think> x",
    "ÀÉñ ß ½ ² Ⅷ ３４ é́ 漢字ひらがなカタカナ한국어 😀👩‍👩‍👧 \u3000\u00a0end",
]


@pytest.fixture(scope="session")
def backend() -> tokenizers.Tokenizer:
    return train_bpe(CONTROL, ["</think>", "    "])


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Gguf:
    """A model to carry tokenizers."""
    model = oracle("llama/tied", vocab_size=VOCAB_SIZE, num_hidden_layers=1)
    return llama_gguf(publish(model, tmp_path_factory.mktemp("gguf") / "published"))


def write(gguf: Gguf, backend: tokenizers.Tokenizer, path: Path, pre: str, **changes: Any) -> Path:
    metadata = tokenizer_metadata(backend, pre, padding=VOCAB_SIZE - backend.get_vocab_size())
    return Gguf(gguf.architecture, gguf.metadata | metadata | changes, gguf.tensors).write(path / "model.gguf")


def test_equals_the_tokenizer_it_was_made_from(gguf: Gguf, backend: tokenizers.Tokenizer, tmp_path: Path) -> None:
    found = GgufFile(write(gguf, backend, tmp_path, "gpt-2")).tokenizer()
    for text in TEXTS:
        ids = backend.encode(text).ids
        assert found.encode(text) == ids
        assert found.decode(ids) == backend.decode(ids)
    assert found.vocab_size == backend.get_vocab_size()
    assert found.token_bytes(VOCAB_SIZE - 1) == b""  # a row of the embedding that is no token
    assert (found.bos_token, found.eos_token, found.add_bos_token) == ("<|bos|>", "<|eos|>", False)


@pytest.mark.parametrize("pre", ["gpt-2", "default", "llama-bpe"])
def test_agrees_with_transformers(pre: str, gguf: Gguf, tmp_path: Path) -> None:
    """All special tokens in ASCII: others transformers takes for mislabelled and leaves in pieces."""
    path = write(gguf, train_bpe(["<|bos|>", "<|eos|>"], ["</think>"]), tmp_path, pre)
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    ours = GgufFile(path).tokenizer()
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text


def test_saved_as_hugging_face_files(gguf: Gguf, backend: tokenizers.Tokenizer, tmp_path: Path) -> None:
    found = GgufFile(write(gguf, backend, tmp_path, "deepseek-v3")).tokenizer()
    found.save(tmp_path / "saved")
    again = Tokenizer.from_directory(tmp_path / "saved")
    assert [again.encode(text) for text in TEXTS] == [found.encode(text) for text in TEXTS]


# What each rule keeps together, by hand from the published tokenizers' descriptions: pieces joined by "|".
SPLITS = {
    "gpt-2": ["Hello| 1234| it|'s| ok|!?", "a| | b|\n|\n|c", "x| | 12", "天气很好"],
    "smollm": ["Hello| |1|2|3|4| it|'s| ok|!?", "x|  |1|2", "１|２|½"],
    "llama-bpe": ["Hello| |123|4| IT|'S| ok|!?\n\n|x", "a|\n\n|b", "x| | |123|456|7", "(word|.next"],
    "deepseek-llm": ["Hello| |1|2|3|4| it|'|s| ok|!?", "a|\n|\n|b", "tap| water|今天天气|,| |1|２", "é|t|é| Ω|x"],
    "deepseek-coder": ["Hello| |1|2|3|4| it|'|s| ok|!?", "a|\n|\n|b", "f|(|x|)| += |1", "今天天气"],
    "deepseek-v3": ["Hello| |123|4| it|'s| ok|!?\n\n|x", "123|456|78", "今天天气|ok|ひらがなカタカナ", "a|  | b"],
}


@pytest.mark.parametrize("pre", SPLITS)
def test_where_text_is_split(pre: str, gguf: Gguf, backend: tokenizers.Tokenizer, tmp_path: Path) -> None:
    GgufFile(write(gguf, backend, tmp_path, pre)).tokenizer().save(tmp_path / "saved")
    splitter = tokenizers.Tokenizer.from_file(str(tmp_path / "saved" / "tokenizer.json")).pre_tokenizer
    for expected in SPLITS[pre]:
        text = expected.replace("|", "")
        spans = [span for _, span in splitter.pre_tokenize_str(text)]
        assert "|".join(text[start:stop] for start, stop in spans) == expected


def test_llama_3_takes_known_words_whole(gguf: Gguf, tmp_path: Path) -> None:
    """A word in the vocabulary that no merges lead to; other tokenizers leave it in pieces."""
    backend = train_bpe(CONTROL, [])
    changes = tokenizer_metadata(backend, "", padding=VOCAB_SIZE - backend.get_vocab_size())
    del changes["tokenizer.ggml.pre"]
    word_id = backend.get_vocab_size()
    changes["tokenizer.ggml.tokens"][word_id] = "Zyzzyva"
    changes["tokenizer.ggml.token_type"][word_id] = 1
    assert GgufFile(write(gguf, backend, tmp_path, "llama-bpe", **changes)).tokenizer().encode("Zyzzyva") == [word_id]
    assert len(GgufFile(write(gguf, backend, tmp_path, "gpt-2", **changes)).tokenizer().encode("Zyzzyva")) > 1


@pytest.mark.parametrize(("pre", "added"), [("llama-bpe", True), ("gpt-2", False), ("deepseek-llm", False)])
def test_bos_where_the_file_does_not_say(
    pre: str, added: bool, gguf: Gguf, backend: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    metadata = tokenizer_metadata(backend, pre, padding=VOCAB_SIZE - backend.get_vocab_size())
    del metadata["tokenizer.ggml.add_bos_token"]
    path = Gguf(gguf.architecture, gguf.metadata | metadata, gguf.tensors).write(tmp_path / "model.gguf")
    assert (GgufFile(path).tokenizer().encode("a")[0] == 0) is added


def test_chat_template_and_every_end_of_turn(gguf: Gguf, backend: tokenizers.Tokenizer, tmp_path: Path) -> None:
    template = "{% for message in messages %}<｜User｜>{{ message.content }}{% endfor %}"
    changes = {"tokenizer.chat_template": template, "tokenizer.ggml.eot_token_id": 2}
    file = GgufFile(write(gguf, backend, tmp_path, "gpt-2", **changes))
    found = file.tokenizer()
    assert found.eos_token_ids == file.config.eos_token_ids == (1, 2)
    assert found.encode_chat([{"role": "user", "content": "dog"}]) == [2, *backend.encode("dog").ids]


def refused(gguf: Gguf, backend: tokenizers.Tokenizer, path: Path, **changes: Any) -> str:
    file = GgufFile(write(gguf, backend, path, "gpt-2", **changes))
    with pytest.raises(CheckpointError) as error:
        file.tokenizer()
    assert str(error.value).startswith(f"{path / 'model.gguf'}: ")
    return str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tokenizer.ggml.model", "llama", "tokenizer.ggml.model = 'llama' is not supported, only 'gpt2'"),
        ("tokenizer.ggml.pre", "qwen2", "tokenizer.ggml.pre = 'qwen2' is not supported"),
        ("tokenizer.ggml.pre", 5, "tokenizer.ggml.pre is 5, expected one str"),
        ("tokenizer.ggml.add_eos_token", True, "tokenizer.ggml.add_eos_token is True; only False"),
        ("tokenizer.ggml.add_space_prefix", True, "tokenizer.ggml.add_space_prefix is True; only False"),
        ("tokenizer.ggml.normalizer.lowercase", True, "tokenizer.ggml.normalizer.lowercase is not supported"),
        ("tokenizer.ggml.token_type", [1, 1], "tokenizer.ggml.token_type has 2 entries for 512 tokens"),
        ("tokenizer.ggml.token_type", [6] * 512, "tokenizer.ggml.token_type [0] is 6 (token '<|bos|>')"),
        ("tokenizer.ggml.tokens", ["same"] * 512, "tokenizer.ggml.tokens lists 'same' twice"),
        ("tokenizer.ggml.tokens", list(range(512)), "tokenizer.ggml.tokens [0] is 0, expected text"),
        ("tokenizer.ggml.merges", ["a b c"], "tokenizer.ggml.merges [0] is 'a b c', not two tokens that make a third"),
        ("tokenizer.ggml.merges", ["z q"], "tokenizer.ggml.merges [0] is 'z q', not two tokens that make a third"),
        ("tokenizer.ggml.bos_token_id", 511, "BOS id 511 has no token"),
        ("tokenizer.chat_template", 5, "tokenizer.chat_template is no text"),
    ],
)
def test_refused(key: str, value: Any, message: str, gguf: Gguf, backend: tokenizers.Tokenizer, tmp_path: Path) -> None:
    assert message in refused(gguf, backend, tmp_path, **{key: value})


@pytest.mark.parametrize("key", ["model", "pre", "tokens", "token_type", "merges"])
def test_missing(key: str, gguf: Gguf, backend: tokenizers.Tokenizer, tmp_path: Path) -> None:
    metadata = tokenizer_metadata(backend, "gpt-2", padding=VOCAB_SIZE - backend.get_vocab_size())
    del metadata[f"tokenizer.ggml.{key}"]
    path = Gguf(gguf.architecture, gguf.metadata | metadata, gguf.tensors).write(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match=rf"model\.gguf: metadata tokenizer\.ggml\.{key} is missing"):
        GgufFile(path).tokenizer()


def test_smollm2(smollm2_path: Path) -> None:
    """Ids equal those of transformers for the same file, once it splits digits as SmolLM2's own tokenizer.json does.

    transformers 5.23 reads `pre = smollm` as GPT-2's rule, which puts a space before a number with the number; the
    published tokenizer keeps it with the spaces before.
    """
    ours = GgufFile(smollm2_path).tokenizer()
    theirs = AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    texts = [*TEXTS, "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n", "for i in range(10):\n    print(i)"]
    for text in texts:
        ids = theirs.encode(text, add_special_tokens=False)
        assert ours.encode(text) == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert ours.eos_token_ids == (2,)
    assert (ours.bos_token, ours.eos_token, ours.add_bos_token) == ("<|im_start|>", "<|im_end|>", False)
    messages = [{"role": "user", "content": "Hello"}]
    assert ours.encode_chat(messages) == theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
