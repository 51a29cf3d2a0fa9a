"""How layers become stages, and what a pipeline refuses."""

from itertools import combinations, pairwise

import pytest
import torch

from dist.training import AHEAD, TIED, WIDE
from tapwater.config import ModelConfig, preset, replace_fields
from tapwater.config.pretrain import ParallelSection
from tapwater.errors import ConfigError
from tapwater.model import Transformer
from tapwater.parallel.split import _cheapest_cuts, stage_layers, stages_of


def meta(config: ModelConfig) -> Transformer:
    with torch.device("meta"):
        return Transformer(config)


@pytest.mark.parametrize("stages", [1, 2, 3, 7])
def test_no_other_cut_has_a_cheaper_dearest_stage(stages: int) -> None:
    costs = [5, 1, 1, 9, 2, 2, 8]

    def dearest(bounds: tuple[int, ...]) -> int:
        return max(sum(costs[start:stop]) for start, stop in pairwise(bounds))

    cuts = [(0, *inner, len(costs)) for inner in combinations(range(1, len(costs)), stages - 1)]
    found = tuple(_cheapest_cuts(costs, stages))
    assert found in cuts
    assert dearest(found) == min(map(dearest, cuts))


def test_the_head_counts() -> None:
    small = stage_layers(meta(replace_fields(WIDE, {"vocab_size": 8}, "small head")), ParallelSection(pp=2))
    large = stage_layers(meta(replace_fields(WIDE, {"vocab_size": 4096}, "large head")), ParallelSection(pp=2))
    assert small[0].start == 0
    assert small[-1].stop == large[-1].stop == 5
    assert len(large[1]) < len(small[1])


def test_v2_on_sixteen_processes() -> None:
    """60 layers and a head as dear as one and a half of them: nobody has more than four."""
    sizes = [len(each) for each in stage_layers(meta(preset("deepseek-v2")), ParallelSection(pp=16))]
    assert sum(sizes) == 60
    assert max(sizes) == 4
    assert sizes[-1] <= 2


def test_stages_go_round_or_down_and_up() -> None:
    interleaved = ParallelSection(pp=3, schedule="interleaved", stages_per_process=2)
    assert [stages_of(interleaved, rank) for rank in range(3)] == [[0, 3], [1, 4], [2, 5]]
    zbv = ParallelSection(pp=3, schedule="zbv", stages_per_process=2)
    assert [stages_of(zbv, rank) for rank in range(3)] == [[0, 5], [1, 4], [2, 3]]


@pytest.mark.parametrize(
    ("config", "section", "words"),
    [
        (WIDE, ParallelSection(pp=6), r"6 stages, the model has only 5 layers"),
        (WIDE, ParallelSection(pp=2, stages_per_process=2), "1f1b has 1 stage per process"),
        (WIDE, ParallelSection(pp=2, schedule="interleaved"), "at least 2, got 1"),
        (WIDE, ParallelSection(pp=2, schedule="zbv", stages_per_process=3), "zbv has 2 stages"),
        (AHEAD, ParallelSection(pp=2), "multi-token prediction"),
        (TIED, ParallelSection(pp=2), "tie_word_embeddings"),
    ],
)
def test_what_a_pipeline_cannot_do_is_refused(config: ModelConfig, section: ParallelSection, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        stage_layers(meta(config), section)
