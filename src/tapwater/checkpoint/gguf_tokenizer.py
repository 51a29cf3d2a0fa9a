"""The tokenizer inside a GGUF file: byte-level BPE, rebuilt as the `tokenizers` library runs it."""

from collections import Counter

import tokenizers
from gguf import TokenType
from tokenizers import AddedToken, Regex, decoders, models
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Sequence, Split

from tapwater.checkpoint.gguf_container import GgufContainer
from tapwater.checkpoint.gguf_fields import Fields
from tapwater.config import ModelConfig
from tapwater.errors import CheckpointError
from tapwater.text import Tokenizer

# Padding, fill-in-the-middle and such: ids told by name, and scores, which byte-level BPE has no use for.
NOT_NEEDED = """
    scores token_type_count unknown_token_id padding_token_id seperator_token_id separator_token_id mask_token_id
    cls_token_id fim_pre_token_id fim_suf_token_id fim_mid_token_id fim_pad_token_id fim_rep_token_id fim_sep_token_id
    prefix_token_id suffix_token_id middle_token_id bos_token_id eos_token_id eot_token_id eom_token_id
"""  # the last four are in the ModelConfig
MUST_BE_FALSE = ("add_eos_token", "add_sep_token", "add_space_prefix", "remove_extra_whitespaces")

# The cased letters DeepSeek-LLM's pre-tokenizer keeps together: data of its tokenizer.json, frozen at one Unicode
# version, so a \p{..} class would not do.
DEEPSEEK_LLM_LETTERS = (
    r"A-Za-z"
    r"µÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙ"
    r"ὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ"
    r"-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃"
)
CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
# Regular expressions the text is split by, one after the other (each also splits what the ones before left).
DEEPSEEK_LLM = ("[\r\n]", rf"\s?[{DEEPSEEK_LLM_LETTERS}]+", "\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+", r"\s+$", CJK)
DEEPSEEK_CODER = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK)
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"""
    r"""|\s*[\r\n]+|\s+(?!\S)|\s+""",
)
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
)


def read_tokenizer(container: GgufContainer, config: ModelConfig) -> Tokenizer:
    """The tokenizer a GGUF file describes.

    Raises CheckpointError, naming the key, for a tokenizer that is absent, not byte-level BPE, split by a rule not
    known here, or damaged.
    """
    fields = Fields(container, "tokenizer.ggml.")
    model = fields.need("model", str)
    if model != "gpt2":
        raise fields.error("model", f"= {model!r} is not supported, only 'gpt2' (byte-level BPE)")
    pre = fields.need("pre", str)
    add_bos_token = fields.get("add_bos_token", bool, _is_llama_3(pre))  # llama.cpp's rule for files that do not say
    for key in MUST_BE_FALSE:
        fields.expect(key, bool, False)
    tokens, kinds, merges = fields.need("tokens", list), fields.need("token_type", list), fields.need("merges", list)
    fields.ignore(NOT_NEEDED)
    fields.refuse_rest()
    if len(kinds) != len(tokens):
        raise fields.error("token_type", f"has {len(kinds)} entries for {len(tokens)} tokens")
    backend = tokenizers.Tokenizer(_bpe(fields, pre, tokens, kinds, merges))
    backend.pre_tokenizer = _pre_tokenizer(fields, pre)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(_added(tokens, kinds, TokenType.CONTROL))
    backend.add_tokens(_added(tokens, kinds, TokenType.USER_DEFINED))
    template = container.metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{container.path}: metadata tokenizer.chat_template is no text")
    try:
        return Tokenizer(
            backend,
            bos_token_id=config.bos_token_id,
            eos_token_ids=config.eos_token_ids,
            chat_template=template,
            add_bos_token=add_bos_token,
        )
    except CheckpointError as error:
        raise CheckpointError(f"{container.path}: {error}") from None


def _bpe(fields: Fields, pre: str, tokens: list, kinds: list, merges: list) -> models.BPE:
    """The vocabulary and merges; rows of the embedding that are no token (UNUSED) are left out."""
    known = (TokenType.NORMAL, TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNUSED)
    for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if not isinstance(token, str) or not token:
            raise fields.error("tokens", f"[{index}] is {token!r}, expected text")
        if kind not in known:
            raise fields.error("token_type", f"[{index}] is {kind!r} (token {token!r}), which byte-level BPE has not")
    used = [(token, index) for index, token in enumerate(tokens) if kinds[index] != TokenType.UNUSED]
    vocab = dict(used)
    if len(vocab) < len(used):
        token = Counter(token for token, _ in used).most_common(1)[0][0]
        raise fields.error("tokens", f"lists {token!r} twice")
    pairs = []
    for index, merge in enumerate(merges):
        parts = merge.split(" ") if isinstance(merge, str) else []
        if len(parts) != 2 or parts[0] not in vocab or parts[1] not in vocab or "".join(parts) not in vocab:
            raise fields.error("merges", f"[{index}] is {merge!r}, not two tokens that make a third")
        pairs.append((parts[0], parts[1]))
    # Llama-3 takes a word that is a token whole, even where no merges lead to it.
    return models.BPE(vocab=vocab, merges=pairs, ignore_merges=_is_llama_3(pre))


def _added(tokens: list, kinds: list, wanted: TokenType) -> list[AddedToken]:
    special = wanted is TokenType.CONTROL
    return [
        AddedToken(token, normalized=False, special=special)
        for token, kind in zip(tokens, kinds, strict=True)
        if kind == wanted
    ]


def _is_llama_3(pre: str) -> bool:
    return pre in ("llama-bpe", "llama3", "llama-v3")


def _pre_tokenizer(fields: Fields, pre: str) -> PreTokenizer:
    """How text is split before merging, by the name llama.cpp gives to the rules of published tokenizers."""
    if pre in ("gpt-2", "default"):
        return ByteLevel(add_prefix_space=False, use_regex=True)
    if pre == "smollm":
        return Sequence([Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)])
    if pre == "deepseek-llm":
        steps = [*_splits(DEEPSEEK_LLM), Digits(individual_digits=True)]
    elif pre == "deepseek-coder":
        steps = [*_splits(DEEPSEEK_CODER), Digits(individual_digits=True)]
    elif pre == "deepseek-v3":
        steps = _splits(DEEPSEEK_V3)
    elif _is_llama_3(pre):
        steps = _splits(LLAMA_3)
    else:
        raise fields.error("pre", f"= {pre!r} is not supported")
    return Sequence([*steps, ByteLevel(add_prefix_space=False, use_regex=False)])


def _splits(patterns: tuple[str, ...]) -> list[PreTokenizer]:
    return [Split(Regex(pattern), "isolated") for pattern in patterns]
