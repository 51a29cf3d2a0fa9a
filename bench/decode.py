"""Tokens per second of a model on this machine, on the path users get: LLM.submit, the engine's thread, the listener.

    python bench/decode.py [MODEL] [--rounds N] [section.key=value ...]

Prefill: prompt tokens over the time to the first token. Decode at batch B: tokens over time of the steps in which all
B streams get a token, from the last one's first to the first one's last.
"""

import random
import sys
from pathlib import Path

import cyclopts

from measure import decode_speed, prefill_speed
from report import publish
from tapwater.cli.common import load, split_overrides
from tapwater.config import load_run
from tapwater.errors import TapwaterError

PREFILL_TOKENS = 512
PROMPT_TOKENS = 32
NEW_TOKENS = 64
BATCHES = (1, 8, 32)

app = cyclopts.App(help=__doc__)


@app.default
def main(model: str = "smollm2-135m-instruct", *overrides: str, rounds: int = 5, config: Path | None = None) -> None:
    """Measure MODEL; the rows of a round run one after another, and rounds repeat, so that drift hits all rows."""
    model, settings = split_overrides(model, overrides)
    llm = load(model, load_run(config, settings))
    chance = random.Random(0)
    figures: dict[str, list[float]] = {}
    try:
        prefill_speed(llm, PREFILL_TOKENS, chance)
        for _ in range(rounds):
            figures.setdefault(f"prefill {PREFILL_TOKENS}", []).append(prefill_speed(llm, PREFILL_TOKENS, chance))
            for batch in BATCHES:
                speed = decode_speed(llm, batch, PROMPT_TOKENS, NEW_TOKENS, chance)
                figures.setdefault(f"decode x{batch}", []).append(speed)
    finally:
        llm.close()
    publish("decode", "tokens/s", figures)


if __name__ == "__main__":
    try:
        app()
    except TapwaterError as error:
        sys.exit(f"error: {error}")
