"""Text to the token ids of documents."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Protocol

import numpy as np
import tokenizers
from numpy.typing import NDArray

from tapwater.data.fim import FimIds, Ids, Order, arrange, is_chosen, order_of, split_text
from tapwater.errors import DataError
from tapwater.text.control import FIM_TOKENS
from tapwater.text.files import TokenizerFiles, read_tokenizer_files


class Backend(Protocol):
    """Encodes texts; strings of control tokens in them are ordinary text."""

    name: str

    def encode(self, texts: Sequence[str]) -> list[Ids]: ...


class _Tokenizers:
    name = "tokenizers"

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        found = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(each.ids, np.int64) for each in found]


class _Fastokens:
    name = "fastokens"

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        import fastokens

        self._backend = fastokens.Tokenizer.from_json_str(backend.to_str())

    def encode(self, texts: Sequence[str]) -> list[Ids]:
        ids, offsets = self._backend.encode_batch_flat(list(texts), split_special_tokens=True)
        flat, edges = np.frombuffer(ids, "<u4"), np.frombuffer(offsets, "<u8")
        return [flat[start:stop] for start, stop in pairwise(edges)]


@dataclass(frozen=True)
class ToEncode:
    """A text, the number it is drawn by, and how likely it is to be rearranged."""

    text: str
    key: int
    fim_rate: float


class Encoder:
    """Encodes documents by the tokenizer of a directory; make one with `open`."""

    def __init__(self, backend: Backend, bos: int, eos: int, fim: FimIds | None, vocab_size: int) -> None:
        self.backend, self.bos_token_id, self.eos_token_id = backend, bos, eos
        self.fim, self.vocab_size = fim, vocab_size

    @classmethod
    def open(cls, directory: Path, probes: Sequence[str]) -> "Encoder":
        """Read the tokenizer's files.

        `fastokens` encodes where it is installed and gives the ids of `tokenizers` for all `probes`, otherwise
        `tokenizers` does. DataError when there is no BOS or EOS.
        """
        files = read_tokenizer_files(directory)
        if files.bos_token_id is None or not files.eos_token_ids:
            raise DataError(f"{directory}: the tokenizer has no BOS or no EOS token")
        files.backend.no_truncation()
        files.backend.no_padding()
        controls = _mark_controls(files)
        files.backend.encode_special_tokens = True
        marks = [files.backend.token_to_id(token) for token in FIM_TOKENS]
        begin, hole, end = marks
        fim = None if begin is None or hole is None or end is None else FimIds(begin, hole, end)
        size = 1 + max(files.backend.get_vocab(with_added_tokens=True).values())
        backend = _fastest(files.backend, [*probes, *controls, *FIM_TOKENS])
        return cls(backend, files.bos_token_id, files.eos_token_ids[0], fim, size)

    def encode(
        self, documents: Sequence[ToEncode], seed: int, short_share: float = 0.0, spm_share: float = 0.0
    ) -> list[tuple[NDArray[np.int64], Order | None]]:
        """`BOS .. EOS` of each document and its order, None as it stands; draws depend on `key` and `seed` alone.

        Shares are of the rearranged documents: those with short middles, and those with the suffix first.
        DataError when one is to be rearranged and the tokenizer has no marks for it.
        """
        parts: list[str] = []
        orders: list[Order | None] = []
        for each in documents:
            rearranged = is_chosen(each.key, each.fim_rate, seed)
            parts += split_text(each.text, each.key, seed, short_share) if rearranged else (each.text,)
            orders.append(order_of(each.key, spm_share, seed) if rearranged else None)
        encoded = iter(self.backend.encode(parts))
        found: list[tuple[NDArray[np.int64], Order | None]] = []
        for order in orders:
            body = next(encoded)
            if order is not None:
                body = arrange(body, next(encoded), next(encoded), self._marks(), order)
            found.append((np.concatenate(([self.bos_token_id], body, [self.eos_token_id])).astype(np.int64), order))
        return found

    def _marks(self) -> FimIds:
        if self.fim is None:
            raise DataError(f"fim: the tokenizer has no tokens {' '.join(FIM_TOKENS)}; set fim.rate=0 or train one")
        return self.fim


def _mark_controls(files: TokenizerFiles) -> list[str]:
    """The strings of control tokens, all of them marked special, so that text is never encoded as one.

    DeepSeek's tokenizers do not mark those of infilling, nor those of turns, which their chat templates name.
    """
    template = files.chat_template or ""
    controls = [
        token for token in files.backend.get_added_tokens_decoder().values()
        if token.special or token.content in FIM_TOKENS
        or (token.content in template and len(token.content) > 1 and not token.content.isspace())
    ]  # fmt: skip
    for token in controls:
        token.special = True
    files.backend.add_special_tokens(controls)
    return [token.content for token in controls]


def _fastest(backend: tokenizers.Tokenizer, probes: Sequence[str]) -> Backend:
    reference = _Tokenizers(backend)
    if find_spec("fastokens") is None:
        return reference
    try:
        fast = _Fastokens(backend)
    except (ValueError, RuntimeError):  # a part of the tokenizer that it does not know
        return reference
    same = all(
        np.array_equal(own, other)
        for own, other in zip(reference.encode(probes), fast.encode(probes), strict=True)
    )  # fmt: skip
    return fast if same else reference
