"""Small tokenizers of both spellings, made on the spot so that no downloaded file is needed."""

import copy

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from tapwater.text import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "def main():\n    for index in range(10):\n        print(index)\n",
    "Wasser aus dem Hahn ist günstig; l'eau du robinet aussi. Él también lo cree.",
    "今天天气很好，我们去公园散步吧。今天我们喝自来水。",
    "emoji 😀😀🚰 and 👩‍👩‍👧 families, numbers 3.14159 and 2718",
    "system user assistant You are a helpful assistant. Hello! How are you?",
] * 3


@pytest.fixture(scope="session")
def byte_level_backend() -> tokenizers.Tokenizer:
    """Byte-level BPE with ChatML tokens, a role token not marked special (as in DeepSeek-V3) and a reasoning tag."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|bos|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken(text, normalized=False) for text in ("<｜User｜>", "</think>", "    ")])
    return backend


@pytest.fixture(scope="session")
def tokenizer(byte_level_backend: tokenizers.Tokenizer) -> Tokenizer:
    """Its chat template is ChatML."""
    return Tokenizer(
        copy.deepcopy(byte_level_backend),
        bos_token_id=0,
        eos_token_ids=(2,),
        chat_template=(
            "{% for message in messages %}"
            "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
            "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
        ),
        add_bos_token=False,
    )


@pytest.fixture(scope="session")
def sentencepiece_backend() -> tokenizers.Tokenizer:
    """Llama-2's arrangement: every byte a token, `▁` for the space, one space put before the text and taken off."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghilnorstuwz.,"]
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "a"), ("i", "n")]
    pieces += ["".join(pair) for pair in merges]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend


@pytest.fixture(scope="session")
def sentencepiece_tokenizer(sentencepiece_backend: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer(
        copy.deepcopy(sentencepiece_backend),
        bos_token_id=1,
        eos_token_ids=(2,),
        chat_template=None,
        add_bos_token=True,
    )
