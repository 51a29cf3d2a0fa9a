"""The tokenizer of a model: text to token ids and back, with its special tokens and chat template."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import tokenizers
from tokenizers.processors import TemplateProcessing

from tapwater.errors import CheckpointError, RequestError
from tapwater.text.chat import Message, compile_template, render_chat
from tapwater.text.control import FIM_TOKENS, ControlStrings
from tapwater.text.files import read_tokenizer_files
from tapwater.text.pieces import read_pieces


class Tokenizer:
    """A `tokenizers.Tokenizer` with what a model needs besides: BOS, EOS and the chat template.

    The first of `eos_token_ids` is the one templates print; generation ends at any of them. With `add_bos_token` raw
    prompts start with BOS. The backend is taken over: its truncation and padding are switched off (nothing is cut in
    silence) and its post-processor is replaced by one that adds BOS or nothing.

    Raises `CheckpointError` if an id has no token, BOS is to be added but there is none, or the backend spells its
    tokens in a way `pieces.py` does not know.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_token_id: int | None,
        eos_token_ids: tuple[int, ...],
        chat_template: str | None,
        add_bos_token: bool,
    ) -> None:
        self._backend = backend
        self._pieces = read_pieces(backend)
        self.bos_token_id = bos_token_id
        self.eos_token_ids = eos_token_ids
        self.chat_template = chat_template
        if chat_template is not None:
            compile_template(chat_template)  # a broken one is a fault of the files, not of the first request
        self.add_bos_token = add_bos_token
        self.bos_token = None if bos_token_id is None else self._special_token(bos_token_id, "BOS")
        eos_tokens = [self._special_token(token_id, "EOS") for token_id in eos_token_ids]
        self.eos_token = eos_tokens[0] if eos_tokens else None

        backend.no_truncation()
        backend.no_padding()
        if add_bos_token and self.bos_token is None:
            raise CheckpointError("The tokenizer is to start prompts with BOS (add_bos_token), but has no bos_token")
        if add_bos_token:
            backend.post_processor = TemplateProcessing(
                single=[self.bos_token, "$A"], special_tokens=[(self.bos_token, bos_token_id)]
            )
        else:
            backend.post_processor = TemplateProcessing(single=["$A"], special_tokens=[])

        # One more than the highest id, gaps counted: a model's embedding table may have more rows, never fewer.
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        added = backend.get_added_tokens_decoder()
        self._control = ControlStrings(added.values(), chat_template or "")
        self._skipped = {token_id for token_id, token in added.items() if token.special} | {*eos_token_ids}
        if bos_token_id is not None:
            self._skipped.add(bos_token_id)

    @classmethod
    def from_directory(cls, path: Path) -> "Tokenizer":
        """Read the tokenizer of a Hugging Face model directory; raises `CheckpointError` naming the file at fault."""
        files = read_tokenizer_files(path)
        return cls(
            files.backend,
            bos_token_id=files.bos_token_id,
            eos_token_ids=files.eos_token_ids,
            chat_template=files.chat_template,
            add_bos_token=files.add_bos_token,
        )

    def encode(self, text: str) -> list[int]:
        """Encode a raw prompt, with BOS first if the model wants one.

        As in transformers, control strings such as `<|im_end|>` become control tokens: whoever sends a raw prompt
        writes the template too. Messages from others belong in `encode_chat`. Raises `RequestError` for text with
        half a surrogate pair.
        """
        return self._encode(text, add_special_tokens=True)

    def encode_part(self, text: str) -> list[int]:
        """Encode text that stands within a document: no BOS, whatever the model wants; otherwise as `encode`."""
        return self._encode(text, add_special_tokens=False)

    def encode_words(self, text: str) -> list[int]:
        """As `encode`, but control strings are ordinary text, as they are in messages."""
        first, *others = self._ordinary_parts(text)
        return self.encode(first) + [token_id for part in others for token_id in self.encode_part(part)]

    def encode_infill(self, prefix: str, suffix: str, *, suffix_first: bool = False) -> list[int]:
        """The prompt whose answer stands between two texts, prefix first (PSM) or suffix first (SPM).

        BOS is first if there is one, as in training. Control strings in the texts are ordinary text. Raises
        `RequestError` for a vocabulary without the three marks.
        """
        begin, hole, end = (self.token_id(mark) for mark in FIM_TOKENS)
        if begin is None or hole is None or end is None:
            raise RequestError(
                f"this model cannot fill in: its vocabulary has no {' '.join(FIM_TOKENS)}; leave out suffix",
                param="suffix",
            )
        before, after = (
            [token_id for part in self._ordinary_parts(text) for token_id in self.encode_part(part)]
            for text in (prefix, suffix)
        )
        body = [hole, *after, end, *before] if suffix_first else [*before, hole, *after, end]
        bos = [] if self.bos_token_id is None else [self.bos_token_id]
        return [*bos, begin, *body]

    def token_id(self, token: str) -> int | None:
        """The id of one token of the vocabulary, special ones too; None for what is none."""
        return self._backend.token_to_id(token)

    def encode_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> list[int]:
        """Render `messages` by the chat template and encode; BOS is there if the template writes it, never twice.

        Control strings inside messages are encoded as ordinary text (see `control.py`). Raises `RequestError` as
        `render_chat` does.
        """
        prompt = render_chat(
            self.chat_template,
            self._control.mark(messages),
            add_generation_prompt=add_generation_prompt,
            bos_token=self.bos_token,
            eos_token=self.eos_token,
        )
        parts = self._control.split(prompt)
        return [token_id for part in parts for token_id in self._encode(part, add_special_tokens=False)]

    def decode(self, token_ids: Sequence[int]) -> str:
        """Decode to text without special tokens; bytes that are not UTF-8 become U+FFFD.

        Equals transformers' `decode(skip_special_tokens=True)`, but for one case: where SentencePiece byte tokens are
        not UTF-8, `tokenizers` spoils their whole run, which a stream that has shown its start cannot take back.
        """
        text = b"".join(map(self.text_bytes, token_ids)).decode("utf-8", errors="replace")
        return self.strip_start(text)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes of one token, special or not; b"" for an id past the vocabulary (padding of the embedding)."""
        token = self._backend.id_to_token(token_id)
        return b"" if token is None else self._pieces.bytes_of(token)

    def token_text(self, token_id: int) -> str:
        """One token as text, special or not; U+FFFD stands for part of a character."""
        return self.token_bytes(token_id).decode("utf-8", errors="replace")

    def text_bytes(self, token_id: int) -> bytes:
        """The bytes a token adds to decoded text: none if it is special."""
        return b"" if token_id in self._skipped else self.token_bytes(token_id)

    def strip_start(self, text: str) -> str:
        """Remove the space that SentencePiece puts before the first word of a text, where the tokenizer says so."""
        return text.removeprefix(" ") if self._pieces.strips_first_space else text

    def save(self, directory: Path) -> None:
        """Write tokenizer.json, tokenizer_config.json and generation_config.json (the EOS ids).

        `from_directory` and transformers' AutoTokenizer read back the same ids and template.
        """
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "add_bos_token": self.add_bos_token,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "chat_template": self.chat_template,
            "clean_up_tokenization_spaces": False,
        }
        generation = {"bos_token_id": self.bos_token_id, "eos_token_id": list(self.eos_token_ids) or None}
        directory.mkdir(parents=True, exist_ok=True)
        # its own `save` raises a bare Exception on a full disk
        (directory / "tokenizer.json").write_text(self._backend.to_str(pretty=True), encoding="utf-8")
        _write_json(directory / "tokenizer_config.json", config)
        _write_json(directory / "generation_config.json", generation)

    def _ordinary_parts(self, text: str) -> list[str]:
        """The text cut within control strings, so that its parts encode without them."""
        return self._control.split(self._control.mark_text(text))

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            # the batch form releases the GIL: a long prompt does not stop the threads that serve others
            return self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids
        except TypeError as error:
            raise RequestError("The text is not Unicode: it holds half a surrogate pair (\\ud800-\\udfff)") from error

    def _special_token(self, token_id: int, role: str) -> str:
        token = self._backend.id_to_token(token_id)
        if token is None:
            raise CheckpointError(f"The tokenizer's {role} id {token_id} has no token in its vocabulary")
        return token


def _write_json(path: Path, fields: Mapping[str, object]) -> None:
    present = {key: value for key, value in fields.items() if value is not None}
    path.write_text(json.dumps(present, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
