"""Which weights a device holds under a layout."""

from dataclasses import dataclass

from tapwater.config import ModelConfig
from tapwater.cost.counts import layer_parameters
from tapwater.cost.layout import Layout, check_layout


@dataclass(frozen=True)
class Shard:
    """Weights of one pipeline stage on one of its devices.

    `dense` ones are on dp devices, `routed` experts on dp * tp / ep. Layers of multi-token prediction are left out.
    """

    layers: range
    dense: float
    routed: float

    @property
    def weights(self) -> float:
        return self.dense + self.routed


def stage_layers(num_layers: int, pp: int) -> list[range]:
    """Each stage's layers: as equal as possible, the shorter stages at the ends, which hold embedding and head."""
    short, extra = divmod(num_layers, pp)
    first_long = (pp - extra) // 2
    stages: list[range] = []
    start = 0
    for stage in range(pp):
        size = short + (first_long <= stage < first_long + extra)
        stages.append(range(start, start + size))
        start += size
    return stages


def stage_shards(config: ModelConfig, layout: Layout) -> list[Shard]:
    """A device's share of each stage; ConfigError for a layout the model cannot have.

    Split over tp: heads, feed-forward widths, vocabulary. Copied to all tp devices: norms, gates and MLA's
    compressions, whose outputs belong to all heads. Of the routed experts the fullest device holds ceil(E / ep).
    """
    check_layout(layout, config)
    embedding = config.vocab_size * config.hidden_size / layout.tp
    found = []
    for stage, layers in enumerate(stage_layers(config.num_hidden_layers, layout.pp)):
        dense, routed = 0.0, 0.0
        for layer in layers:
            part = layer_parameters(config, layer)
            dense += (part.attention_heads + part.feed_forward) / layout.tp + part.attention_common
            dense += part.norms + part.gate
            if part.routed:
                experts = config.moe.n_routed_experts
                routed += part.routed // experts * -(-experts // layout.ep)
        if stage == 0:
            dense += embedding
        if stage == layout.pp - 1:
            # a tied head needs its own copy only when the embedding is on another device
            dense += config.hidden_size + (0 if config.tie_word_embeddings and layout.pp == 1 else embedding)
        found.append(Shard(layers, dense, routed))
    return found
