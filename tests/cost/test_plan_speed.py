"""Planning is quick enough to ask again and again; bounds leave slow and busy machines several times what is needed."""

import time

from machines import H800
from tapwater.config import preset
from tapwater.cost.formats import Formats
from tapwater.cost.load import Traffic
from tapwater.cost.plan import Limits, plan
from tapwater.cost.sweep import sweep

FORMATS = Formats("fp8", "bfloat16")


def test_v3_on_eighteen_nodes() -> None:
    config, limits = preset("deepseek-v3"), Limits(tpot_s=0.05, max_nodes=18)
    start = time.process_time()
    plan(config, H800, FORMATS, Traffic(4000, 1000, 0.5), limits)
    assert time.process_time() - start < 3  # 0.2 is usual


def test_a_sweep_of_a_thousand_points() -> None:
    start = time.process_time()
    points = list(sweep(preset("deepseek-v2"), H800, FORMATS, range(1, 1001, 10), range(1024, 32_768, 3200)))
    assert len(points) == 1000
    assert time.process_time() - start < 10  # 1 is usual
