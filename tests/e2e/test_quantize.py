"""`tapwater quantize` on a real model: interrupted, continued, measured, and answering."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.mark.slow
def test_smollm2_from_interruption_to_answer(smollm2_path: Path, tmp_path: Path) -> None:
    destination, partial = tmp_path / "packed", tmp_path / "packed.partial"
    tapwater = [sys.executable, "-m", "tapwater"]
    command = [*tapwater, "quantize", str(smollm2_path), str(destination), "--format", "q8"]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL) as process:
        while not (partial / "journal.jsonl").exists() or (partial / "journal.jsonl").read_text().count("\n") < 20:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    assert not destination.exists()
    written = (partial / "journal.jsonl").read_text().count("\n") - 1
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert written >= 19
    assert not partial.exists()
    assert "210 tensors requantised from Q4_1 to q8, relative error 0.5" in done.stdout
    found = re.search(r"perplexity  ([\d.]+) -> ([\d.]+) ", done.stdout)
    assert found
    assert float(found[2]) == pytest.approx(float(found[1]), rel=0.01)
    call = [*tapwater, "generate", str(destination), "--prompt", "The capital of France is", "--temperature", "0"]
    answer = subprocess.run([*call, "--max-tokens", "6"], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert answer.stdout.startswith(" Paris")
