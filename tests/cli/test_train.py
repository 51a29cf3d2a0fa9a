"""What a run pays by the hour."""

from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from tapwater.cli.train import rent_of
from tapwater.config import load_pretrain
from tapwater.errors import ConfigError

TINY = Path(__file__).parents[2] / "configs" / "tiny.toml"


def test_a_rent_in_the_catalogue_is_of_each_machine_and_one_that_is_given_of_all() -> None:
    settings = load_pretrain(TINY, ('train.usd_per_hour="0.75"',))
    assert rent_of(settings, 3) == Decimal("0.75")
    listed = replace(settings, train=replace(settings.train, usd_per_hour=None, machine="h100"))
    one = rent_of(listed)
    assert one is not None and one > 1 and rent_of(listed, 3) == 3 * one
    unknown = replace(listed, train=replace(listed.train, machine="xeon-2vcpu"))
    with pytest.raises(ConfigError, match=r"no rent of machine xeon-2vcpu is known; set train\.usd_per_hour"):
        rent_of(unknown)
