"""What a run spent: wall-clock time and its rent, over all interruptions, kept in the run's directory."""

import json
import time
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from math import isfinite
from pathlib import Path

from tapwater.config import read_json
from tapwater.errors import ConfigError, TrainingError

SPENT_FILE = "spent.json"


@dataclass(frozen=True)
class Spent:
    """Time from when a run was made, its own processes' only, and the rent of it (None: no rent is known)."""

    elapsed_s: float
    cost_usd: Decimal | None


class Clock:
    """Counts from here on, after what earlier processes of the run have kept.

    A process that is killed has counted what it kept last: after its last step, at the latest.
    """

    def __init__(self, directory: Path, usd_per_hour: Decimal | None) -> None:
        self._start = time.perf_counter()
        self._directory, self._usd_per_hour = directory, usd_per_hour
        kept = read_spent(directory)
        self._before_s = 0.0 if kept is None else kept.elapsed_s

    def count_before(self, elapsed_s: float) -> None:
        """What a checkpoint says was spent until then counts, if nothing that was kept says more."""
        self._before_s = max(self._before_s, elapsed_s)

    def spent(self, ahead_s: float = 0.0) -> Spent:
        """All of the run so far, or what it will be in `ahead_s` seconds."""
        elapsed_s = self._before_s + time.perf_counter() - self._start + ahead_s
        return Spent(elapsed_s, rent(elapsed_s, self._usd_per_hour))

    def keep(self) -> None:
        """Write it down; for one process of the run. TrainingError when it cannot be written."""
        spent = self.spent()
        facts = {"elapsed_s": spent.elapsed_s, "cost_usd": None if spent.cost_usd is None else str(spent.cost_usd)}
        partial = self._directory / f".{SPENT_FILE}.partial"
        try:
            partial.write_text(json.dumps(facts) + "\n", encoding="utf-8")
            partial.replace(self._directory / SPENT_FILE)
        except OSError as error:
            raise TrainingError(
                f"{self._directory / SPENT_FILE}: cannot be written ({error.strerror}); make room, and the same "
                "command goes on from the newest checkpoint"
            ) from error


def read_spent(directory: Path) -> Spent | None:
    """What a run's directory says it has spent, None if nothing; TrainingError for a damaged file."""
    path = directory / SPENT_FILE
    if not path.is_file():
        return None
    try:
        found = read_json(path)
        elapsed_s, cost_usd = found["elapsed_s"], found["cost_usd"]
        if type(elapsed_s) not in (int, float) or not isfinite(elapsed_s) or elapsed_s < 0:
            raise ValueError(f"elapsed_s {elapsed_s}")
        if cost_usd is None:
            return Spent(elapsed_s, None)
        if not isinstance(cost_usd, str) or not 0 <= Decimal(cost_usd) < Decimal("inf"):
            raise ValueError(f"cost_usd {cost_usd}")
        return Spent(elapsed_s, Decimal(cost_usd))
    except (ConfigError, KeyError, TypeError, ValueError, InvalidOperation) as error:
        raise TrainingError(
            f"{path}: is damaged ({error}); remove it: then what the newest checkpoint had spent is counted"
        ) from None


def rent(seconds: float, usd_per_hour: Decimal | None) -> Decimal | None:
    return None if usd_per_hour is None else usd_per_hour * Decimal(round(1000 * seconds)) / 3_600_000
