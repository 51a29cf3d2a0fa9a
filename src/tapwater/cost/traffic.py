"""What a step moves and multiplies: experts touched, bytes read and written, FLOPs of prompts, an older FLOP rule."""

from dataclasses import dataclass
from math import comb

from tapwater.config import ModelConfig
from tapwater.cost.checks import at_least
from tapwater.cost.counts import Flops, flops_per_token, parameters
from tapwater.cost.formats import Formats, cache_bytes_per_token, mean_weight_bits
from tapwater.errors import ConfigError


@dataclass(frozen=True)
class StepTraffic:
    """Bytes between memory and processor in one step of decoding, over all devices; nothing is counted twice."""

    weights_bytes: float
    cache_read_bytes: float
    cache_written_bytes: float
    tokens: int

    @property
    def total_bytes(self) -> float:
        return self.weights_bytes + self.cache_read_bytes + self.cache_written_bytes

    @property
    def bytes_per_token(self) -> float:
        return self.total_bytes / self.tokens


def step_traffic(config: ModelConfig, *, batch: int, context: int, formats: Formats) -> StepTraffic:
    """Bytes of one decoding step: `batch` requests get a token each, which attends to `context` tokens.

    Weights are read once however many tokens use them: all that are not routed, the routed experts that uniform routing
    is expected to touch, and of the input embedding the tokens' rows. ConfigError for counts below 1.
    """
    at_least(1, batch=batch, context=context)
    by_part = parameters(config).by_part
    routed = by_part["routed experts"]
    always = sum(by_part.values()) - routed - (0 if config.tie_word_embeddings else by_part["input embedding"])
    if config.is_moe:
        routed *= expected_experts(config, batch) / config.moe.n_routed_experts
    per_token = cache_bytes_per_token(config, formats.cache)
    return StepTraffic(
        weights_bytes=mean_weight_bits(config, formats) / 8 * (always + routed + batch * config.hidden_size),
        cache_read_bytes=batch * context * per_token,
        cache_written_bytes=batch * per_token,
        tokens=batch,
    )


def expected_experts(config: ModelConfig, tokens: float) -> float:
    """Routed experts of a layer that at least one of `tokens` tokens chooses, if each choice is uniform.

    E (1 - (1 - K/E)^tokens). Group-limited routing leaves this number as it is: a token's experts lie closer together,
    but by symmetry each is still chosen with probability K/E, and tokens choose independently. Real gates prefer some
    experts, and then fewer are touched: this is the dearest case.
    """
    at_least(0, tokens=tokens)
    experts, chosen = config.moe.n_routed_experts, config.moe.num_experts_per_tok
    return experts * (1 - (1 - chosen / experts) ** tokens)


def expected_devices(config: ModelConfig, devices: int) -> float:
    """Of `devices` equal, contiguous shares of a layer's experts, how many a token's experts lie on, if uniform.

    With group-limited routing first `topk_group` groups are drawn, then experts from them; V2 on 8 devices: 2.77 of at
    most 3, where unlimited routing would reach 4.46 (report section 2.2.2). ConfigError when shares and groups do not
    nest.
    """
    at_least(1, devices=devices)
    moe = config.moe
    experts, chosen, groups, kept = moe.n_routed_experts, moe.num_experts_per_tok, moe.n_group, moe.topk_group
    if experts % devices or (groups % devices and devices % groups):
        raise ConfigError(
            f"{devices} devices: {experts} experts in {groups} groups do not spread over them evenly; "
            f"use a divisor or a multiple of n_group that divides n_routed_experts"
        )
    reachable = kept * experts // groups

    def missed(here: int) -> float:
        """Probability that none of the chosen experts is among `here` of the reachable ones."""
        return comb(reachable - here, chosen) / comb(reachable, chosen)

    if devices >= groups:
        return kept * devices / groups * (1 - missed(experts // devices))
    on_device = groups // devices
    reached = 0.0
    for drawn in range(1, min(kept, on_device) + 1):
        ways = comb(on_device, drawn) * comb(groups - on_device, kept - drawn)
        reached += ways / comb(groups, kept) * (1 - missed(drawn * experts // groups))
    return devices * reached


def prefill_flops(config: ModelConfig, prompt: int, *, causal: bool = True) -> Flops:
    """Forward FLOPs of a whole prompt, expanded attention, the head counted for every token as reports do.

    Causal: token i attends to i tokens. Otherwise every token to all of them, as kernels without a mask compute and
    older papers count.
    """
    at_least(1, prompt=prompt)
    one = flops_per_token(config, 1, absorbed=False)
    pairs = prompt * (prompt + 1) / 2 if causal else float(prompt) ** 2
    return Flops(prompt * one.matmul, pairs * one.attention)


def moe_paper_flops(config: ModelConfig, tokens: int = 4096, sequence: int = 4096) -> float:
    """Training FLOPs of `tokens` tokens by the rule of the DeepSeekMoE paper's tables ("FLOPs per 4K tokens").

    Per token and layer 24 d^2 for attention with as many key-value heads as heads, 12 d S for scores without the causal
    half, 48 d^2 for a feed-forward of 8 d^2 weights; per token 6 V d for the head. An expert counts as 1/m of that
    feed-forward, m whole (4 in the 16B model), and every layer as one with experts. Fits the paper's dense models and
    its 16B; not its 145B. ConfigError for latent attention, which came after the rule.
    """
    at_least(1, tokens=tokens, sequence=sequence)
    if config.is_mla:
        raise ConfigError(f"the DeepSeekMoE paper's FLOP rule does not know latent attention: {config.model_type}")
    hidden, layers = config.hidden_size, config.num_hidden_layers
    feed_forwards = 1.0
    if config.is_moe:
        standard_width = 8 / 3 * hidden
        active = config.moe.num_experts_per_tok + config.moe.n_shared_experts
        feed_forwards = active / max(round(standard_width / config.moe.moe_intermediate_size), 1)
    per_layer = (24 + 48 * feed_forwards) * hidden**2 + 12 * hidden * sequence
    return tokens * (layers * per_layer + 6 * config.vocab_size * hidden)
