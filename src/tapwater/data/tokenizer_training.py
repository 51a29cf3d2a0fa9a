"""The vocabulary of a corpus: byte-level BPE trained on a sample of it, or one that is there already."""

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from tapwater.errors import CheckpointError, DataError
from tapwater.text import Tokenizer
from tapwater.text.control import FIM_TOKENS

BOS, EOS, PAD = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"
SPECIAL_TOKENS = (BOS, EOS, *FIM_TOKENS, PAD)  # ids 0, 1, ..., spelt as DeepSeek does

# Where a token cannot reach across, in the manner of DeepSeek's own: digits stand alone, so that numbers of a length
# are cut alike; a run of Chinese or Japanese is apart from Latin words; a word takes the space or mark before it; marks
# take the line end after them; and indentation is apart from the space that belongs to the next word.
_DIGIT = r"\p{N}"
_IDEOGRAPHS = r"[\p{Han}\p{Hiragana}\p{Katakana}]+"
_PARTS = (
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"  # a word
    r"| ?[\p{P}\p{S}]+[\r\n]*"  # marks
    r"|\s*[\r\n]+"  # empty lines
    r"|\s+(?!\S)|\s+"  # indentation
)


def train_tokenizer(texts: Iterable[str], vocab_size: int, directory: Path) -> None:
    """Train on `texts` and write the files of a Hugging Face tokenizer, which starts prompts with BOS.

    The vocabulary begins with SPECIAL_TOKENS and the 256 bytes, so that any text can be written. DataError when the
    texts hold too little for `vocab_size`.
    """
    backend = tokenizers.Tokenizer(models.BPE())
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in (_DIGIT, _IDEOGRAPHS, _PARTS)]
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() != vocab_size:
        raise DataError(
            f"tokenizer: the text sampled makes only {backend.get_vocab_size()} tokens of vocab_size {vocab_size}; "
            "lower it, or raise tokenizer.sample_bytes"
        )
    own = Tokenizer(backend, bos_token_id=0, eos_token_ids=(1,), chat_template=None, add_bos_token=True)
    own.save(directory)
    path = directory / "tokenizer_config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text("utf-8")) | {"pad_token": PAD}, ensure_ascii=False, indent=2) + "\n",
        encoding="utf-8",
    )


def reuse_tokenizer(source: Path, directory: Path) -> None:
    """Write the tokenizer of a Hugging Face directory; DataError when it cannot begin or end a document."""
    try:
        found = Tokenizer.from_directory(source)
    except CheckpointError as error:
        raise DataError(f"tokenizer.reuse: {error}") from None
    if found.bos_token_id is None or not found.eos_token_ids:
        raise DataError(f"tokenizer.reuse: {source} has no BOS or no EOS token, which begin and end every document")
    found.save(directory)
