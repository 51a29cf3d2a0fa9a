"""What one step of a model computes, whatever computes it: products with weights, and attention."""

from dataclasses import dataclass
from typing import Literal

from tapwater.config import ModelConfig
from tapwater.cost.counts import num_moe_layers
from tapwater.cost.traffic import expected_experts

Form = Literal["grouped", "absorbed", "expanded"]


@dataclass(frozen=True)
class Product:
    """`count` matrices of `weights` numbers each (all layers together), every one multiplied with `rows` rows.

    "latent" is MLA's kv_b_proj, a head's share at a time. `is_copied`: what it gives belongs to all heads, so that each
    tensor-parallel device computes all of it.
    """

    part: Literal["attention", "latent", "dense", "shared", "routed", "head"]
    weights: float
    rows: float
    count: float
    is_copied: bool = False

    @property
    def macs(self) -> float:
        return self.weights * self.rows * self.count


@dataclass(frozen=True)
class Attention:
    """Scores and weighted values of `requests`: `macs` in all layers, over `positions` entries read in each layer."""

    form: Form
    is_prompt: bool
    requests: float
    macs: float
    positions: float


@dataclass(frozen=True)
class Work:
    """A step of `rows` tokens, for `sampled` of which logits are wanted; `touched` experts, all layers together."""

    rows: float
    sampled: float
    products: tuple[Product, ...]
    attention: Attention
    touched: float

    @property
    def macs(self) -> float:
        return sum(product.macs for product in self.products) + self.attention.macs


def decode_work(config: ModelConfig, batch: float, context: float) -> Work:
    """A step in which each of `batch` requests gets a token that attends to `context` cached ones, itself included."""
    form: Form = "absorbed" if config.is_mla else "grouped"
    macs = batch * context * _pair_macs(config, form)
    attention = Attention(form, False, batch, macs, batch * context)
    return _work(config, batch, batch, _attention_products(config, batch, batch, form), attention)


def prefill_work(config: ModelConfig, tokens: float, cached: float = 0.0, requests: float = 1) -> Work:
    """A chunk of `tokens` prompt tokens of each of `requests`, causal, after `cached` ones each.

    MLA expands all `cached + tokens` latents anew in every chunk.
    """
    form: Form = "expanded" if config.is_mla else "grouped"
    pairs = requests * tokens * (cached + (tokens + 1) / 2)
    rows, positions = requests * tokens, requests * (cached + tokens)
    attention = Attention(form, True, requests, pairs * _pair_macs(config, form), positions)
    return _work(config, rows, requests, _attention_products(config, rows, positions, form), attention)


def _work(config: ModelConfig, rows: float, sampled: float, projections: list[Product], attention: Attention) -> Work:
    hidden = config.hidden_size
    moe_layers = num_moe_layers(config)
    dense_layers = config.num_hidden_layers - moe_layers
    products = list(projections)
    if dense_layers:
        products.append(Product("dense", 3 * hidden * config.intermediate_size, rows, dense_layers))
    touched = 0.0
    if config.is_moe:
        moe = config.moe
        touched = moe_layers * expected_experts(config, rows)
        expert = 3 * hidden * moe.moe_intermediate_size
        if moe.n_shared_experts:
            products.append(Product("shared", moe.n_shared_experts * expert, rows, moe_layers))
        rows_each = moe_layers * rows * moe.num_experts_per_tok / touched
        products.append(Product("routed", expert, rows_each, touched))
    products.append(Product("head", hidden * config.vocab_size, sampled, 1))
    return Work(rows, sampled, tuple(products), attention, touched)


def _attention_products(config: ModelConfig, rows: float, positions: float, form: Form) -> list[Product]:
    """Projections of `rows` tokens; of expanded attention also of the `positions` latents it is expanded from."""
    hidden, heads, layers = config.hidden_size, config.num_attention_heads, config.num_hidden_layers
    if not config.is_mla:
        width = config.attention_head_dim
        return [
            Product("attention", hidden * (heads + 2 * config.num_key_value_heads) * width, rows, layers),
            Product("attention", hidden * heads * width, rows, layers),
        ]
    mla = config.mla
    query = heads * config.qk_head_dim
    common = hidden * (mla.kv_lora_rank + mla.qk_rope_head_dim) + hidden * (config.q_lora_rank or 0)
    into = (config.q_lora_rank or hidden) * query
    per_head = mla.kv_lora_rank * (mla.qk_nope_head_dim + mla.v_head_dim)
    return [
        Product("attention", common, rows, layers, is_copied=True),
        Product("attention", into, rows, layers),
        Product("latent", per_head, rows if form == "absorbed" else positions, layers * heads),
        Product("attention", heads * mla.v_head_dim * hidden, rows, layers),
    ]


def _pair_macs(config: ModelConfig, form: Form) -> float:
    """Multiplications of one query token with one position, all heads and layers."""
    if form == "grouped":
        width = 2 * config.attention_head_dim
    elif form == "absorbed":
        width = 2 * config.mla.kv_lora_rank + config.mla.qk_rope_head_dim
    else:
        width = config.qk_head_dim + config.mla.v_head_dim
    return config.num_hidden_layers * config.num_attention_heads * width
