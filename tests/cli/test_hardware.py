"""`hardware` shows every figure with its origin, takes up a user's own machines and starts without torch."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tapwater.cli import main
from tapwater.cost.hardware import machine, machines, to_toml


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a user's machines are looked for; not made yet."""
    monkeypatch.setenv("TAPWATER_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path / "machines"


def hardware(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    with pytest.raises(SystemExit) as exited:
        main(["hardware", *arguments])
    out, err = capsys.readouterr()
    assert int(exited.value.code or 0) == code, err
    return err if code else out


def test_list_has_every_machine(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = hardware(capsys, "list").splitlines()
    assert [line.split()[0] for line in lines[1:-2] if not line.startswith(" ")] == list(machines())
    assert all(len(line) <= 80 for line in lines)
    h800 = next(line for line in lines if line.startswith("h800"))
    assert h800.split()[1:8] == ["8", "x", "80", "3,350", "989", "1,979", "1,979"]
    assert "16.00" in h800
    listed = json.loads(hardware(capsys, "list", "--json"))
    assert list(listed) == list(machines())
    assert listed["a100-80"]["usd_per_hour"]["amount"] == str(machine("a100-80").usd_per_hour.amount)  # type: ignore


def test_show_has_every_figure_with_its_origin(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = " ".join(hardware(capsys, "show", "h800").split())
    shown = ("80 GB", "3,350 GB/s", "1,978.9 TFLOP/s", "200 GB/s", "50 GB/s", "76.5%", "10,200 W", "$16.00/hour")
    for each in (*shown, "section 3.2.2", "2024-12", "deepseek-ai/FlashMLA", "bf16 295"):
        assert each in out, each
    facts = json.loads(hardware(capsys, "show", "h800", "--json"))
    assert facts["read_bytes_per_s"]["value"] == 3.35e12
    assert facts["usd_per_hour"]["amount"] == "16.00"  # money is never a float
    assert facts["efficiency"]["attention"]["source"].startswith("FlashMLA")
    assert facts["ridge_flops_per_byte"]["bf16"] == pytest.approx(295.3, abs=0.1)
    assert json.loads(hardware(capsys, "show", "cpu-2vcpu", "--json"))["usd_per_hour"] is None


def test_ones_own_machine_is_listed_and_shown(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own.mkdir()
    box = replace(machine("cpu-2vcpu"), name="box", description="under the desk")
    (own / "box.toml").write_text(to_toml(box))
    assert "under the desk" in hardware(capsys, "list")
    assert hardware(capsys, "show", "box").startswith("box: under the desk\n")
    (own / "box.toml").write_text(to_toml(replace(box, name="h100")))
    said = hardware(capsys, "list", code=1)
    assert "'h100' is both in the catalogue and in" in said and "box.toml" in said and said.count("\n") == 1


def test_an_unknown_machine(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no machine 'h80'; did you mean 'h800'?" in hardware(capsys, "show", "h80", code=1)


def test_list_loads_neither_torch_nor_other_verbs() -> None:
    script = (
        "import sys, contextlib, tapwater.cli\n"
        "with contextlib.suppress(SystemExit): tapwater.cli.main(['hardware', 'list'])\n"
        "heavy = {'torch', 'numpy', 'fastapi', 'huggingface_hub', 'rich.console', 'tapwater.cli.serve'}\n"
        "print(heavy & set(sys.modules))"
    )
    paths = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=paths)
    assert "h800" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"
