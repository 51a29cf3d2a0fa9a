"""What a run saves on its way, and how it goes on from there: its checkpoints, and where a loss spike sent it back."""

from typing import Any

from torch import Tensor

from tapwater.checkpoint.store import Store
from tapwater.checkpoint.store_manifest import (
    Listing,
    list_checkpoints,
    plain_json,
    read_facts,
    sync_directory,
    write_synced,
)
from tapwater.config import PretrainConfig, read_json
from tapwater.errors import CheckpointError, ConfigError
from tapwater.parallel import World, reshard
from tapwater.train.settled import plain
from tapwater.train.state import Moment, tensors_of
from tapwater.train.step import Step

REWOUND_FILE = "rewound.json"  # beside the checkpoints: the Moment after the last rewind


class Saves:
    """Saves a run's tensors with the Moment they are of, and fills them again; every process calls it alike.

    A rewind takes a checkpoint's tensors but not its place in the text, nor its count of rewinds. What it takes instead
    is kept in REWOUND_FILE, so that a run killed before its next checkpoint goes on from the rewind and not into the
    same text again. It holds as long as no checkpoint counts as many rewinds.
    """

    def __init__(self, store: Store, step: Step, world: World, config: PretrainConfig) -> None:
        self._store, self._step, self._world, self._config = store, step, world, config
        self._rewound_path = store.directory / REWOUND_FILE
        self.newest: int | None = None  # the step last saved, resumed or gone back to

    def save(self, moment: Moment, score: float | None) -> None:
        """Begin to write a checkpoint; with checkpoint.asynchronous off, wait for it."""
        model = plain(self._config)["model"]
        self._store.save(moment.step, self._tensors(), {**moment.facts(), "model": model}, score)
        self.newest = moment.step
        if not self._config.checkpoint.asynchronous:
            self._store.wait()

    def resume(self) -> Moment | None:
        """Fill the tensors from the newest checkpoint, or from the one of an unfinished rewind; None without any.

        Raises CheckpointError for a checkpoint that is incomplete: saves and removals are never seen in part, so it was
        damaged later.
        """
        listing = list_checkpoints(self._store.directory)
        saved = listing.latest()
        if listing.incomplete:
            back = "begin again" if saved is None else f"go on from step {saved.step}"
            raise CheckpointError(f"{listing.incomplete[0]}; remove that checkpoint to {back}")
        rewound = self._last_rewind()
        holds = rewound is not None and _holds(rewound, listing)
        self._world.barrier()  # all have looked before anything is removed
        if rewound is not None and holds:
            self._load(rewound.step)
            self._store.rewind(rewound.step)  # the process may have ended in the midst of it
            return rewound
        if rewound is not None and listing.at(rewound.step) is None and self._world.is_first:
            self._rewound_path.unlink()  # its checkpoint is gone; another of the same step would not be the same
        return None if saved is None else Moment.of(saved.step, self._load(saved.step))

    def go_back(self, before: int | None) -> Moment | None:
        """Fill the tensors from the newest checkpoint of a step less than `before`, of any where that is None.

        None, and nothing is filled, when there is no such checkpoint. `settle_rewind` follows.
        """
        found = [each.step for each in self._store.listing().complete if before is None or each.step < before]
        return Moment.of(found[-1], self._load(found[-1])) if found else None

    def settle_rewind(self, moment: Moment) -> None:
        """From now on the run goes on from `moment`, whose tensors are those of the checkpoint of its step."""
        if self._world.is_first:
            partial = self._rewound_path.with_name(f".{REWOUND_FILE}.partial")
            write_synced(partial, plain_json({**moment.facts(), "step": moment.step}))
            partial.replace(self._rewound_path)
            sync_directory(self._store.directory)
        self._store.rewind(moment.step)

    def _last_rewind(self) -> Moment | None:
        if not self._rewound_path.is_file():
            return None
        try:
            facts = read_json(self._rewound_path)
            if type(facts["step"]) is not int or type(facts["detector"]["num_rewinds"]) is not int:
                raise TypeError("step and num_rewinds are not whole numbers")
            return Moment.of(facts["step"], facts)
        except (ConfigError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{self._rewound_path}: is damaged ({error}); remove it to go on from the newest checkpoint, which may "
                "be into a loss spike again"
            ) from None

    def _load(self, step: int) -> dict[str, Any]:
        facts = self._store.load(step, self._tensors())
        reshard(self._step.model)
        self._step.masters.publish()
        self.newest = step
        return facts

    def _tensors(self) -> dict[str, Tensor]:
        step = self._step
        return tensors_of(step.model, step.masters, step.optimizers.list, self._world)


def _holds(rewound: Moment, listing: Listing) -> bool:
    """Whether the checkpoint of the rewind is there, and no newer one was saved since."""
    saved = listing.latest()
    if saved is None or listing.at(rewound.step) is None:
        return False
    return read_facts(saved.path)["detector"]["num_rewinds"] < rewound.detector["num_rewinds"]
