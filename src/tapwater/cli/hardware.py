"""`tapwater hardware`: the machines that estimates know, each figure with its source and date."""

import sys
from dataclasses import asdict
from datetime import date
from typing import Any

from cyclopts import App

from tapwater.cli.common import cache_dir, own_machines
from tapwater.cli.output import AsJson, write_json
from tapwater.cli.text_table import text_table
from tapwater.cost.hardware import Figure, Machine, Rent, check_name, machine, machines, to_toml
from tapwater.cost.money import decimal_of
from tapwater.errors import ConfigError

hardware = App(name="hardware", help="Show the machines that estimates know, and where each figure is from.")


@hardware.command(name="list")
def list_machines(*, as_json: AsJson = False) -> None:
    """List all machines: the catalogue's, then your own."""
    found = machines(own_machines())
    if as_json:
        write_json({name: describe(each) for name, each in found.items()})
        return
    rows = [
        (
            name,
            f"{each.devices} x {each.memory_bytes.value / 1e9:,.0f}",
            f"{each.read_bytes_per_s.value / 1e9:,.0f}",
            *(_tera(each.flops_per_s.get(precision)) for precision in ("bf16", "fp8", "int8")),
            "" if each.usd_per_hour is None else f"{each.usd_per_hour.amount:.2f}",
            each.description,
        )
        for name, each in found.items()
    ]
    sys.stdout.write(text_table(("machine", "GB", "GB/s", "bf16", "fp8", "int8", "$/hour", ""), rows, "lrrrrrr"))
    sys.stdout.write("\nGB/s and TFLOP/s (bf16, fp8, int8) are a device's, $/hour is the node's.\n")


@hardware.command
def show(name: str, /, *, as_json: AsJson = False) -> None:
    """Show one machine, each figure with its source and date, and its ridge points.

    Parameters
    ----------
    name
        A machine of `tapwater hardware list`.
    """
    found = machine(name, own_machines())
    if as_json:
        write_json(describe(found))
        return
    rows = [(what, value, origin.date, origin.source) for what, value, origin in _rows(found)]
    ridges = ", ".join(f"{key} {ridge:.0f}" for key, ridge in found.ridge_flops_per_byte.items())
    sys.stdout.write(
        f"{found.name}: {found.description}\n\n{text_table(('', '', 'date', 'source'), rows, 'lrl')}\n"
        f"ridge points, operations per byte read: {ridges}\n"
    )


@hardware.command
def measure(
    *,
    name: str = "this-machine",
    threads: int | None = None,
    usd_per_hour: str | None = None,
    rent_source: str | None = None,
) -> None:
    """Measure this machine - memory, products, tapwater's kernels - and add it to your machines; under a minute.

    Nothing else should run meanwhile: predictions are as good as the quiet they were measured in.

    Parameters
    ----------
    name
        What to call it; a machine of that name that you measured before is replaced.
    threads
        Threads that compute; without it one per core.
    usd_per_hour
        What an hour of it costs, e.g. 0.08.
    rent_source
        Who says so, with --usd-per-hour.
    """
    if (usd_per_hour is None) != (rent_source is None):
        raise ConfigError("--usd-per-hour and --rent-source go together: a price says where it is from")
    if threads is not None and threads < 1:
        raise ConfigError(f"--threads must be at least 1, got {threads}")
    directory = cache_dir() / "machines"
    path = directory / f"{name}.toml"
    check_name(name, own_machines(), path)
    rent = None
    if usd_per_hour is not None:
        rent = Rent(decimal_of(usd_per_hour, "--usd-per-hour"), rent_source or "", date.today().isoformat())
    from tapwater.calibration import measure_machine  # torch alone takes seconds
    from tapwater.cli.common import progress_bar
    from tapwater.llm import available_cores

    with progress_bar("Measuring") as progress:
        measured = measure_machine(name, threads or available_cores(), rent, progress)
    directory.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(to_toml(measured), encoding="utf-8")
    unfinished.replace(path)
    show(name)
    sys.stdout.write(f"\nwritten to {path}; plan with --machine {name}\n")


def describe(machine: Machine) -> dict[str, Any]:
    """Everything `show` shows, as plain values; amounts of money are strings."""
    rent = machine.usd_per_hour
    facts = asdict(machine)
    facts["usd_per_hour"] = None if rent is None else {**asdict(rent), "amount": str(rent.amount)}
    return {**facts, "ridge_flops_per_byte": machine.ridge_flops_per_byte}


def _rows(machine: Machine) -> list[tuple[str, str, Figure | Rent]]:
    def giga(what: str, figure: Figure | None, unit: str) -> list[tuple[str, str, Figure | Rent]]:
        return [] if figure is None else [(what, f"{figure.value / 1e9:,.5g} {unit}", figure)]

    rows = giga("memory", machine.memory_bytes, "GB")
    rows += giga("memory, read", machine.read_bytes_per_s, "GB/s")
    for precision, peak in machine.flops_per_s.items():
        rows.append((f"peak, {precision}", f"{peak.value / 1e12:,.5g} TFLOP/s", peak))
    rows += giga("to its node", machine.link_bytes_per_s, "GB/s")
    rows += giga("to other nodes", machine.network_bytes_per_s, "GB/s")
    for part in ("memory", "matmul", "attention", "network"):
        share: Figure = getattr(machine.efficiency, part)
        rows.append((f"reached, {part}", f"{share.value:.1%}", share))
    if machine.power_w is not None:
        rows.append(("power, node", f"{machine.power_w.value:,.0f} W", machine.power_w))
    if machine.usd_per_hour is not None:
        rows.append(("rent, node", f"${machine.usd_per_hour.amount}/hour", machine.usd_per_hour))
    return rows


def _tera(peak: Figure | None) -> str:
    value = 0 if peak is None else peak.value / 1e12
    return "" if peak is None else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
