"""`tapwater inspect`: what a model is made of and what a token costs, and whether packed weights are undamaged."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tapwater.cli.common import DEFAULT_MODEL, progress_bar
from tapwater.cli.models import model_config
from tapwater.cli.output import AsJson, write_json
from tapwater.config import ModelConfig
from tapwater.cost.counts import flops_per_token, grouped_kv_elements, parameters, training_flops_per_token
from tapwater.cost.formats import CACHE_FORMATS, cache_bytes_per_token
from tapwater.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

BF16_BYTES = 2
GQA_HEADS = 8


def inspect(
    model: str = DEFAULT_MODEL,
    /,
    *,
    context: int | None = None,
    as_json: AsJson = False,
    verify: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Show what a model is made of and what a token costs.

    Layers, parameters, cache per token and FLOPs per token follow from its configuration; only --verify reads weights.

    Parameters
    ----------
    model
        A preset such as deepseek-v2, a config.json, a model directory, a .gguf file, or a model to pull.
    context
        How many tokens each token attends to in the FLOPs; without it 4096, or less if the model holds less.
    verify
        Of a packed directory, read all weights and compare their checksums; damage ends in an error.
    """
    num_verified = _verify(model) if verify else None
    config = model_config(model)
    if context is not None and not 1 <= context <= config.max_position_embeddings:
        raise ConfigError(
            f"--context must be between 1 and the model's {config.max_position_embeddings}, got {context}"
        )
    facts = describe(model, config, min(4096, config.max_position_embeddings) if context is None else context)
    if num_verified is not None:
        facts["verified_arrays"] = num_verified
    if as_json:
        write_json(facts)
    else:
        _show(facts)


def describe(name: str, config: ModelConfig, context: int) -> dict[str, Any]:
    """Everything `inspect` shows, as plain numbers."""
    moe_layers = sum(config.is_moe_layer(layer) for layer in range(config.num_hidden_layers))
    count = parameters(config)
    own = "MLA" if config.is_mla else f"{config.num_key_value_heads} heads of keys and values"
    cached = {f"this model ({own})": config.kv_elements_per_token}
    if config.num_attention_heads > GQA_HEADS:
        cached[f"GQA-{GQA_HEADS} of its heads"] = grouped_kv_elements(config, GQA_HEADS)
    cached["MHA of its heads"] = grouped_kv_elements(config, config.num_attention_heads)
    forward = {"forward": flops_per_token(config, context, absorbed=False)}
    if config.is_mla:
        forward = {
            "forward, expanded (prefill)": forward["forward"],
            "forward, absorbed (decode)": flops_per_token(config, context, absorbed=True),
        }
    return {
        "model": name,
        "model_type": config.model_type,
        "layers": {
            "total": config.num_hidden_layers,
            "dense": config.num_hidden_layers - moe_layers,
            "moe": moe_layers,
            "multi_token_prediction": config.num_nextn_predict_layers,
            "hidden_size": config.hidden_size,
            "vocab_size": config.vocab_size,
            "max_position_embeddings": config.max_position_embeddings,
            "attention": _attention(config),
            "experts": _experts(config),
        },
        "parameters": asdict(count),
        "kv_cache_per_token": {
            name: {"elements": elements, "bytes_bf16": elements * BF16_BYTES} for name, elements in cached.items()
        },
        "kv_cache_bytes_by_format": _cache_bytes(config),
        "flops_per_token": {
            "context": context,
            **{name: flops.total for name, flops in forward.items()},
            "training": training_flops_per_token(config, context).total,
            "training, masked half counted": training_flops_per_token(config, context, causal=False).total,
        },
    }


def _cache_bytes(config: ModelConfig) -> dict[str, float]:
    """Bytes of a token in every cache format that this model can have."""
    formats = [each for each in CACHE_FORMATS if config.is_mla or each != "fp8_line"]
    return {format: cache_bytes_per_token(config, format) for format in formats}


def _verify(model: str) -> int:
    """The number of arrays, all of which match their checksums; CheckpointError names the first that does not."""
    from rich.progress import DownloadColumn, TimeRemainingColumn

    from tapwater.checkpoint.packed_store import PackedDirectory, is_packed

    if not is_packed(Path(model)):
        raise ConfigError(f"--verify is for packed directories, as `tapwater quantize` makes them; {model} is none")
    packed = PackedDirectory(Path(model))
    with progress_bar(f"Verifying {packed.path.name}", DownloadColumn(), TimeRemainingColumn()) as progress:
        packed.verify(progress)
    return len(packed.manifest.arrays)


def _attention(config: ModelConfig) -> str:
    heads = f"{config.num_attention_heads} heads"
    if not config.is_mla:
        grouped = f", {config.num_key_value_heads} of keys and values"
        return f"{heads}{grouped}, {config.attention_head_dim} wide"
    mla = config.mla
    query = "queries not compressed" if config.q_lora_rank is None else f"queries through {config.q_lora_rank}"
    return (
        f"latent (MLA): {heads}, latent {mla.kv_lora_rank} + rope {mla.qk_rope_head_dim}, "
        f"per head {mla.qk_nope_head_dim} + {mla.qk_rope_head_dim} and {mla.v_head_dim}, {query}"
    )


def _experts(config: ModelConfig) -> str | None:
    if not config.is_moe:
        return None
    moe = config.moe
    groups = f" from {moe.topk_group} of {moe.n_group} groups" if moe.n_group > 1 else ""
    return (
        f"{moe.num_experts_per_tok} of {moe.n_routed_experts} routed{groups} + {moe.n_shared_experts} shared, "
        f"{moe.moe_intermediate_size} wide, gate {config.topk_method}"
    )


def _show(facts: dict[str, Any]) -> None:
    from rich.console import Console  # not for --json

    out = Console()
    layers, count, cache = facts["layers"], facts["parameters"], facts["kv_cache_per_token"]

    table = _table(f"{facts['model']} ({facts['model_type']})", "")
    kinds = f"{layers['total']}: {layers['dense']} dense, {layers['moe']} with experts" if layers["moe"] else ""
    table.add_row("layers", kinds or str(layers["total"]))
    table.add_row("width", f"{layers['hidden_size']:,}")
    table.add_row("attention", layers["attention"])
    if layers["experts"]:
        table.add_row("experts", layers["experts"])
    table.add_row("vocabulary", f"{layers['vocab_size']:,}")
    table.add_row("context", f"{layers['max_position_embeddings']:,} tokens")
    out.print(table)

    table = _table(f"{_short(count['total'])} parameters", "share", "number")
    for part, number in count["by_part"].items():
        if number:
            table.add_row(part, f"{number / count['total']:.1%}", f"{number:,}")
    table.add_section()
    for name in ("total", "active", "active_without_input_embedding", "active_without_embeddings"):
        table.add_row(name.replace("_", " "), f"{count[name] / count['total']:.1%}", f"{count[name]:,}")
    if count["mtp"]:
        table.add_row("multi-token prediction, besides", "", f"{count['mtp']:,}")
    out.print(table)

    table = _table("cache per token in bf16", "numbers", "bytes", "of MHA")
    largest = max(each["elements"] for each in cache.values())
    for name, each in cache.items():
        share = f"{each['elements'] / largest:.1%}"
        table.add_row(name, f"{each['elements']:,}", f"{each['bytes_bf16']:,}", share)
    out.print(table)

    table = _table("this model's cache per token, by format", "bytes", "")
    for format, size in facts["kv_cache_bytes_by_format"].items():
        table.add_row(format, f"{size:,.0f}", CACHE_FORMATS[format])
    out.print(table)

    flops = dict(facts["flops_per_token"])
    table = _table(f"FLOPs per token at a context of {flops.pop('context'):,}", "")
    for name, number in flops.items():
        table.add_row(name, _short(number))
    out.print(table)

    if "verified_arrays" in facts:
        out.print(f"all {facts['verified_arrays']:,} arrays match their checksums")


def _table(title: str, *columns: str) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", show_header=any(columns))
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right" if column else "left")
    return table


def _short(number: float) -> str:
    for size, unit in ((1e9, "billion"), (1e6, "million")):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:,.0f}"
