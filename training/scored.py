"""What a downstream run said of each scene of the split it was scored on, so that scores can be doubted afterwards.

One score of a split does not tell whether it is a few scenes that made it. RUN/tallies.npz holds what the task counted
of every scene; `training.evidence` draws scenes and seeds from it anew.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MissingInputError
from pipeline.manifest import write_atomically
from training.tasks import Task

NAME = "tallies.npz"
Tally = NDArray[Any]


def scene_of(key: str) -> str:
    """Return the scene of a sample's key, `SCENE_ROW_COLUMN`."""
    # from the end: a scene's own identifier may hold `_` too
    return key.rsplit("_", 2)[0]


@dataclass
class Scored:
    """The tallies of a split, scene by scene."""

    task: Task
    of_scene: dict[str, Tally] = field(default_factory=dict)

    def add(self, keys: Sequence[str], predicted: Any, labels: Any) -> None:
        """Count the predictions of some labelled samples, each under its scene."""
        for number, key in enumerate(keys):
            one = slice(number, number + 1)
            self._put(scene_of(key), self.task.tally(predicted[one], labels[one]))

    def merge(self, others: Sequence[Mapping[str, Tally]]) -> Scored:
        """Return what several ranks have counted together."""
        together = Scored(self.task)
        for other in others:
            for scene, tally in other.items():
                together._put(scene, tally)
        return together

    def _put(self, scene: str, tally: Tally) -> None:
        known = self.of_scene.get(scene)
        self.of_scene[scene] = tally if known is None else self.task.join([known, tally])

    @property
    def tally(self) -> Tally:
        """Of the whole split; scenes in the order of their names, whoever has scored them."""
        return self.task.join([self.of_scene[scene] for scene in sorted(self.of_scene)])

    def save(self, run: Path) -> None:
        """Write the tallies into a run folder."""
        scenes = sorted(self.of_scene)
        # by number: a scene may be called anything, even `scenes`
        arrays: dict[str, Any] = {f"tally_{n}": self.of_scene[scene] for n, scene in enumerate(scenes)}
        stream = io.BytesIO()
        np.savez_compressed(stream, scenes=np.array(scenes), **arrays)
        write_atomically(run / NAME, stream.getvalue())


def read(run: Path) -> dict[str, Tally]:
    """Return the tally of each scene of a run; raises `MissingInputError` for a run that was not scored."""
    try:
        with np.load(run / NAME, allow_pickle=False) as held:
            return {str(scene): held[f"tally_{number}"] for number, scene in enumerate(held["scenes"])}
    except (OSError, EOFError, KeyError, ValueError) as error:
        raise MissingInputError(
            f"{run} holds no {NAME} that can be read ({error}): the run is not done, or from before there was one."
            " Start it again under another name."
        ) from error
