"""The catalogue is plausible and says where each figure is from; files of machines are read strictly."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from kernel_rates import RATES
from tapwater.cost.hardware import PRECISIONS, Figure, Machine, Rent, load_machines, machine, machines, to_toml
from tapwater.errors import ConfigError

OWN = """
[box]
description = "8 cards in a box"
kind = "gpu"
devices = 8
memory_bytes = { value = 80e9, source = "datasheet", date = "2025-04-22" }
read_bytes_per_s = { value = 3350e9, source = "datasheet", date = "2025-04" }
link_bytes_per_s = { value = 450e9, source = "datasheet", date = "2025" }
network_bytes_per_s = { value = 50e9, source = "datasheet", date = "2025" }
power_w = { value = 10200, source = "datasheet", date = "2025" }
usd_per_hour = { amount = "16.00", source = "contract", date = "2025" }

[box.flops_per_s]
bf16 = { value = 989e12, source = "datasheet", date = "2025" }
"""


def own(tmp_path: Path, old: str = "", new: str = "", text: str = OWN) -> Path:
    assert old in text
    path = tmp_path / "own.toml"
    path.write_text(text.replace(old, new))
    return path


def figures(machine: Machine) -> Iterator[tuple[str, Figure | Rent]]:
    def within(name: str, value: Any) -> Iterator[tuple[str, Figure | Rent]]:
        if isinstance(value, Figure | Rent):
            yield name, value
        elif isinstance(value, dict):
            for key, each in value.items():
                yield from within(f"{name}.{key}", each)
        elif is_dataclass(value):
            for field in fields(value):
                yield from within(f"{name}.{field.name}", getattr(value, field.name))

    yield from within(machine.name, machine)


@pytest.fixture(params=list(machines()))
def shipped(request: pytest.FixtureRequest) -> Machine:
    return machine(request.param)


def test_every_figure_has_a_source_and_a_date_that_has_been(shipped: Machine) -> None:
    found = dict(figures(shipped))
    assert len(found) >= 2 + 1 + 4, found
    for name, figure in found.items():
        assert len(figure.source) > 10, name
        assert re.fullmatch(r"20\d\d(-\d\d){0,2}", figure.date), name
        assert figure.date <= date.today().isoformat(), name


def test_every_machine_can_run_what_weights_are_stored_in(shipped: Machine) -> None:
    assert {"fp32", "bf16", "int8"} <= set(shipped.flops_per_s) <= set(PRECISIONS)
    peaks = [shipped.flops_per_s[name].value for name in ("fp32", "bf16", "int8")]
    if shipped.kernels is None:  # where peaks were measured, torch may have a unit for bf16 that our int8 does not use
        assert peaks == sorted(peaks)  # fewer bits are never slower
    assert shipped.devices == (8 if shipped.kind == "gpu" else 1)
    for share in ("memory", "matmul", "attention", "network"):
        assert 0.1 < getattr(shipped.efficiency, share).value <= 1


def test_peaks_are_dense() -> None:
    """With sparsity datasheets print twice these."""
    assert machine("h100").flops_per_s["bf16"].value == pytest.approx(989e12, rel=0.01)
    assert machine("a100-80").flops_per_s["bf16"].value == 312e12
    assert machine("mi300x").flops_per_s["fp8"].value == pytest.approx(2615e12, rel=0.01)
    assert machine("l40s").flops_per_s["fp8"].value == 733e12
    assert "fp8" not in machine("a100-40").flops_per_s


def test_deepseeks_node_is_as_their_reports_have_it() -> None:
    h800 = machine("h800")
    assert h800.link_bytes_per_s is not None
    reached = h800.link_bytes_per_s.value * h800.efficiency.network.value
    assert reached == pytest.approx(160e9, rel=0.05)  # what the V3 report reckons with, section 3.2.2
    assert h800.network_bytes_per_s is not None and h800.network_bytes_per_s.value == 50e9
    assert h800.usd_per_hour is not None and h800.usd_per_hour.amount == Decimal("2") * 8
    assert h800.efficiency.memory.value == pytest.approx(3000 / 3350, abs=0.001)
    assert h800.efficiency.matmul.value == pytest.approx(1054 / 1979, abs=0.001)
    assert h800.efficiency.attention.value == pytest.approx(660 / 989, abs=0.001)


def test_derived_figures_follow_from_what_they_name() -> None:
    assert machine("c7a.24xlarge").read_bytes_per_s.value == 12 * 4800e6 * 8
    assert machine("ryzen-9950x").read_bytes_per_s.value == 2 * 5600e6 * 8
    for shipped in machines().values():
        for peak in shipped.flops_per_s.values():
            if said := re.match(r"derived: (\d+) cores x ([\d.]+) GHz \(.*?\) x (\d+) a cycle", peak.source):
                cores, ghz, per_cycle = map(float, said.groups())
                assert peak.value == pytest.approx(cores * ghz * 1e9 * per_cycle, rel=1e-3), shipped.name


def test_ridge_points() -> None:
    h800 = machine("h800").ridge_flops_per_byte
    assert h800["bf16"] == pytest.approx(989.4 / 3.35)
    assert h800["fp8"] == pytest.approx(2 * h800["bf16"], rel=1e-3)
    assert machine("cpu-2vcpu").ridge_flops_per_byte["int8"] == pytest.approx(1923 / 65)


def test_an_unknown_machine_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no machine 'H1000'; did you mean 'h100'"):
        machine("H1000")


def test_what_is_written_reads_as_the_same_machine(shipped: Machine, tmp_path: Path) -> None:
    odd = replace(shipped.memory_bytes, source='a "quoted" \\ source\n\x7f\x01 é 𝄞 = [x]')
    for each in (shipped, replace(shipped, name="my.own-1", memory_bytes=odd, power_w=None, usd_per_hour=None)):
        (tmp_path / "one.toml").write_text(to_toml(each))
        assert load_machines(tmp_path / "one.toml") == {each.name: each}


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = own(tmp_path)
    box = machine("box", path)
    assert box.usd_per_hour == Rent(Decimal("16.00"), "contract", "2025")
    assert box.efficiency == machine("h100").efficiency  # the catalogue's for its kind
    assert list(machines(path)) == [*machines(), "box"]
    assert "box" not in machines()
    assert machine("box", tmp_path) == box  # a directory of such files


def test_own_efficiency_replaces_single_shares(tmp_path: Path) -> None:
    share = 'matmul = { value = 0.5, source = "ours", date = "2026" }'
    box = machine("box", own(tmp_path, text=f"{OWN}\n[box.efficiency]\n{share}\n"))
    assert box.efficiency == replace(machine("h100").efficiency, matmul=Figure(0.5, "ours", "2026"))
    four = "\n".join(share.replace("matmul", name) for name in ("memory", "matmul", "attention", "network"))
    box = machine("box", own(tmp_path, text=f"{OWN}\n[efficiency.gpu]\n{four}\n"))
    assert box.efficiency.network == Figure(0.5, "ours", "2026")
    with pytest.raises(ConfigError, match=r"efficiency: gpu: missing field 'memory'"):
        load_machines(own(tmp_path, text=f"{OWN}\n[efficiency.gpu]\n{share}\n"))
    with pytest.raises(ConfigError, match=r"efficiency: unknown kind 'gpus'; did you mean 'gpu'"):
        load_machines(own(tmp_path, text=f"{OWN}\n[efficiency.gpus]\n{four}\n"))


def test_a_taken_name_is_an_error_that_names_both(tmp_path: Path) -> None:
    path = own(tmp_path, "box", "h100")
    with pytest.raises(ConfigError, match=r"machine 'h100' is both in the catalogue and in .*own.toml; rename"):
        machines(path)
    path.write_text(OWN)
    (tmp_path / "second.toml").write_text(OWN)
    with pytest.raises(ConfigError, match=r"'box' is both in .*own.toml and in .*second.toml"):
        machines(tmp_path)


MEMORY = 'memory_bytes = { value = 80e9, source = "datasheet", date = "2025-04-22" }'


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        # units mixed up
        ("80e9", "80", "box: memory_bytes: 80 bytes is not plausible (1e+09 to 1e+13); write 8e+10 if 80 is in GB"),
        ("80e9", "81920", "write 8.192e+10 if 81920 is in MB"),
        ("3350e9", "3350", "read_bytes_per_s: 3350 bytes per second is not plausible (2e+10 to 1e+14); write 3.35e+12"),
        ("3350e9", "3.35", "write 3.35e+12 if 3.35 is in TB/s"),
        (
            "989e12",
            "989",
            "flops_per_s: bf16: 989 operations per second is not plausible (1e+12 to 1e+17); write 9.89e",
        ),
        ("989e12", "0.989", "if 0.989 is in PFLOP/s"),
        ("450e9", "450", "link_bytes_per_s: 450 bytes per second"),
        (
            "= 50e9",
            "= 400",
            "network_bytes_per_s: 400 bytes per second is not plausible (1e+08 to 1e+12); write 4e+11 if",
        ),
        ("= 50e9", "= 400", "or 5e+10 if 400 is in Gbit/s"),
        ("10200", "10.2", "power_w: 10.2 watts is not plausible (50 to 1e+06); write 10200 if 10.2 is in kW"),
        ("989e12", "989e15", "flops_per_s: bf16: 9.89e+17 operations per second is not plausible (1e+12 to 1e+17)"),
        # not numbers of anything
        ("80e9", "0", "memory_bytes: value must be a positive number, got 0"),
        ("80e9", "-80e9", "memory_bytes: value must be a positive number, got -8"),
        ("80e9", "nan", "memory_bytes: value: float nan is not a finite number"),
        ("80e9", "inf", "memory_bytes: value: float inf is not a finite number"),
        ("80e9", '"80 GB"', "memory_bytes: value: expected float, got str '80 GB'"),
        ("80e9", "true", "memory_bytes: value: expected float, got bool True"),
        # sources and dates
        (', date = "2025-04-22"', "", "memory_bytes: missing field 'date'"),
        ('{ value = 80e9, source = "datasheet",', "{ value = 80e9,", "memory_bytes: missing field 'source'"),
        ('80e9, source = "datasheet"', '80e9, source = " "', "memory_bytes: source is empty"),
        ("2025-04-22", "22.4.2025", "date '22.4.2025' is not an ISO date such as"),
        ("2025-04-22", "2025-02-30", "date '2025-02-30' is not an ISO date"),
        ("2025-04-22", "2025-13", "date '2025-13' is not an ISO date"),
        ("2025-04-22", "20250422", "date '20250422' is not an ISO date"),
        ('"2025-04-22"', "2025-04-22", "memory_bytes: date: expected str, got date"),
        # money
        (
            '"16.00"',
            "16.00",
            'usd_per_hour: amount: expected a decimal number as a string, e.g. "2.00", got float 16.0',
        ),
        ('"16.00"', "16", "usd_per_hour: amount: expected a decimal number as a string"),
        ('"16.00"', '"$16"', "got str '$16'"),
        ('"16.00"', '"1.6e1"', "got str '1.6e1'"),
        ('"16.00"', '"NaN"', "got str 'NaN'"),
        ('"16.00"', '"-16"', "usd_per_hour: amount -16 is no plausible rent"),
        ('"16.00"', '"160000"', "amount 160000 is no plausible rent of a node in US dollars an hour"),
        # structure
        ("memory_bytes", "memory_byte", "box: unknown field 'memory_byte'; did you mean 'memory_bytes'?"),
        ("power_w", "power_watts", "box: unknown field 'power_watts'; did you mean 'power_w'?"),
        ("usd_per_hour", "cny_per_hour", "unknown field 'cny_per_hour'; did you mean 'usd_per_hour'?"),
        ("value = 80e9", "valeu = 80e9", "memory_bytes: unknown field 'valeu'; did you mean 'value'?"),
        (MEMORY, "", "box: missing field 'memory_bytes'"),
        (MEMORY, "memory_bytes = 80e9", "memory_bytes: expected a table of fields, got float"),
        (
            "bf16 =",
            "bf61 =",
            "flops_per_s: unknown precision 'bf61'; did you mean 'bf16'?; known: fp32, bf16, fp8, int8",
        ),
        ('bf16 = { value = 989e12, source = "datasheet", date = "2025" }', "", "flops_per_s: no peak given"),
        ("devices = 8", "devices = 0", "devices 0: a node has 1 to 1024"),
        ("devices = 8", "devices = 8.0", "devices: expected int, got float 8.0"),
        ('kind = "gpu"', 'kind = "cpu"', "devices 8: a CPU machine is one device"),
        ('kind = "gpu"', 'kind = "tpu"', "kind: str 'tpu' is not one of 'cpu', 'gpu'"),
        ('kind = "gpu"', 'kind = "gpu"\nname = "box"', "unknown field 'name'; a machine's name is its table's"),
        ('kind = "gpu"', 'kind = "gpu"\nefficiency = 0.5', "efficiency: expected a table of fields, got float"),
        ("[box", '["my box"', "name 'my box': a machine is named in lower-case letters"),
        ("\n[box]", "devices = 8\n[box]", "devices is not in a table; a machine is a table [NAME]"),
        (OWN, "", "no machine in it"),
        ("[box]", "[box", "not a readable TOML file"),
    ],
)
def test_what_a_file_may_not_say(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = own(tmp_path, old, new)
    with pytest.raises(ConfigError) as refused:
        load_machines(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert said in str(refused.value)


def test_shares_are_at_most_one(tmp_path: Path) -> None:
    share = '\n[box.efficiency]\nmemory = { value = 89.6, source = "ours", date = "2026" }\n'
    with pytest.raises(ConfigError, match=r"memory: 89.6 is no share of a peak: .* 89.6 percent is written 0.896"):
        load_machines(own(tmp_path, text=OWN + share))


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.toml: no such file"):
        machines(tmp_path / "none.toml")
    (tmp_path / "latin.toml").write_bytes(b"[b\xf6x]")
    with pytest.raises(ConfigError, match=r"latin.toml: not a readable TOML file"):
        machines(tmp_path)


def test_machines_made_in_python_are_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"memory_bytes: 80 bytes .* write 8e\+10 if 80 is in GB"):
        replace(machine("h100"), memory_bytes=Figure(80, "datasheet", "2025"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rows": (1, 8, 4)}, "rows must be positive and rise"),
        ({"rows": ()}, "rows must be positive and rise"),
        ({"heads": (0, 4, 16, 64)}, "heads must be positive and rise"),
        ({"weight_s": {"q4": (1e-11,)}}, "weight_s: q4 must have 3 times"),
        ({"grouped_s": {"q8": (1e-10, -1e-10, 1e-10, 1e-10)}}, "grouped_s: q8 must have 4 times of 0 or more"),
        ({"prompt_mac_s": {"grouped": 1e-11}}, "prompt_mac_s must have grouped and expanded"),
    ],
)
def test_rates_of_kernels_that_cannot_be_are_named(changes: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        dataclasses.replace(RATES, **changes)
