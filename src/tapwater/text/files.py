"""The tokenizer files of a Hugging Face model directory."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers

from tapwater.errors import CheckpointError


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files say, checked; the fields are the arguments of `Tokenizer`."""

    backend: tokenizers.Tokenizer
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    chat_template: str | None
    add_bos_token: bool


def read_tokenizer_files(directory: Path) -> TokenizerFiles:
    """Read tokenizer.json and, where present, tokenizer_config.json, special_tokens_map.json, generation_config.json
    and chat_template.jinja; raises `CheckpointError` naming the file and field at fault.

    EOS is the tokenizer's own `eos_token` and then the ids of generation_config.json: Llama-3 ends turns with a
    token that only the latter names.
    """
    backend = _read_backend(directory / "tokenizer.json")
    config_path = directory / "tokenizer_config.json"
    config = _read_json(directory / "special_tokens_map.json") | _read_json(config_path)
    bos_token_id = _token_id(config, "bos_token", backend, config_path)
    eos_token_id = _token_id(config, "eos_token", backend, config_path)
    own_eos = [] if eos_token_id is None else [eos_token_id]
    generation_eos = _generation_eos(directory / "generation_config.json")
    return TokenizerFiles(
        backend=backend,
        bos_token_id=bos_token_id,
        eos_token_ids=tuple(dict.fromkeys([*own_eos, *generation_eos])),
        chat_template=_chat_template(directory, config, config_path),
        add_bos_token=_add_bos_token(config, backend, bos_token_id, config_path),
    )


def _read_backend(path: Path) -> tokenizers.Tokenizer:
    if not path.is_file():
        raise CheckpointError(
            f"No file {path}. A model that only brings a tokenizer.model must be converted first: "
            "load it with transformers' AutoTokenizer and save_pretrained it"
        )
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for every kind of damage
        raise CheckpointError(f"{path} is not a tokenizer the tokenizers library can read: {error}") from error


def _read_text(path: Path) -> str | None:
    if not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}") from error


def _read_json(path: Path) -> dict[str, Any]:
    text = _read_text(path)
    if text is None:
        return {}
    try:
        fields = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise CheckpointError(f"{path} must hold a JSON object, not {type(fields).__name__}")
    return fields


def _token_id(config: dict[str, Any], field: str, backend: tokenizers.Tokenizer, path: Path) -> int | None:
    token = config.get(field)
    if isinstance(token, dict):  # a serialised AddedToken
        token = token.get("content")
    if token is None:
        return None
    token_id = backend.token_to_id(token) if isinstance(token, str) else None
    if token_id is None:
        raise CheckpointError(f"{path}: {field} {token!r} is not in the vocabulary of tokenizer.json")
    return token_id


def _generation_eos(path: Path) -> list[int]:
    value = _read_json(path).get("eos_token_id")
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise CheckpointError(f"{path}: eos_token_id must be an id or a list of ids, not {value!r}")
    return ids


def _chat_template(directory: Path, config: dict[str, Any], config_path: Path) -> str | None:
    """chat_template.jinja, else the config's `chat_template`; of several named ones the one called default."""
    jinja = _read_text(directory / "chat_template.jinja")
    if jinja is not None:
        return jinja
    template = config.get("chat_template")
    if isinstance(template, list):
        try:
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
        except (TypeError, KeyError) as error:
            raise CheckpointError(f"{config_path}: chat_template must list objects with name and template") from error
    if template is not None and not isinstance(template, str):
        raise CheckpointError(f"{config_path}: chat_template must be a string, not {type(template).__name__}")
    return template


def _add_bos_token(
    config: dict[str, Any], backend: tokenizers.Tokenizer, bos_token_id: int | None, config_path: Path
) -> bool:
    """The config's own `add_bos_token`, else what the post-processor of tokenizer.json does.

    DeepSeek-V2 says it in the config only. transformers 5 no longer reads that and drops BOS; transformers 4, which
    the model was published for, adds it.
    """
    if config.get("add_eos_token"):
        raise CheckpointError(
            f"{config_path}: add_eos_token is not supported, a prompt must stay open; set it to false"
        )
    declared = config.get("add_bos_token")
    if declared is not None:
        if not isinstance(declared, bool):
            raise CheckpointError(f"{config_path}: add_bos_token must be true or false, not {declared!r}")
        return declared
    added = backend.encode("", add_special_tokens=True).ids
    if added == []:
        return False
    if added == [bos_token_id]:
        return True
    raise CheckpointError(
        f"{config_path.with_name('tokenizer.json')}: the post-processor adds tokens {added} to a text; "
        f"only BOS ({bos_token_id}) is supported"
    )
