"""A chain of trainings in one configuration, each starting from the weights of the one before: progressive pretraining.

Every stage is a run of its own, NAME-1-STAGE, NAME-2-STAGE and so on beside each other in the output folder, so it is
saved, resumed and compared as any other. The chain's folder holds its configuration and the marker of its end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pipeline.config import build, dump
from pipeline.console import say
from pipeline.errors import ConfigError
from pipeline.manifest import write_atomically
from training.guards import COMPLETE, INTERRUPTED, clear_marks, mark
from training.runs import RunConfig
from training.world import World

Stage = Mapping[str, Any]
"""`name`, and the keys that are other in this stage than in the rest of the configuration."""
RunConfigT = TypeVar("RunConfigT", bound=RunConfig)


def split(config: RunConfigT, stages: Sequence[Stage]) -> list[RunConfigT]:
    """Return the configuration of each stage; raises `ConfigError` naming the stage and the key that is wrong."""
    # without the chain: a stage that held it would be split again
    common = config.model_dump(mode="json") | {"stages": []}
    found: list[RunConfigT] = []
    for number, stage in enumerate(stages, start=1):
        name = stage.get("name")
        if not isinstance(name, str):
            raise ConfigError(f"stages: stage {number} has no `name`; give each a short one.")
        tree = _merged(common, {k: v for k, v in stage.items() if k != "name"})
        tree["name"] = f"{config.name}-{number}-{name}"
        # all below the chain: by their weights the later ones would stand below the first
        tree["tracking"] |= {"parent": config.name}
        # the first stage keeps the chain's own `init`
        if found:
            tree["init"] = str(found[-1].folder)
        found.append(build(type(config), tree, f"stage `{name}`"))
    return found


def _merged(common: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Put the keys of `other` over those of `common`, group by group."""
    result = dict(common)
    for key, value in other.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both else value
    return result


def run(
    config: RunConfigT, stages: Sequence[RunConfigT], train: Callable[[RunConfigT, World], bool], world: World
) -> bool:
    """Run or resume the stages in their order; True when all are complete, False when one was interrupted and saved."""
    if world.main:
        config.folder.mkdir(parents=True, exist_ok=True)
        # batch scripts go by the marker: an earlier life's must not stand for this one's
        clear_marks(config.folder)
        write_atomically(config.folder / "config.yaml", dump(config).encode())
    for stage in stages:
        complete = train(stage, world)
        if world.main and not complete:
            mark(config.folder, INTERRUPTED)
        if not complete:
            return False
    if world.main:
        mark(config.folder, COMPLETE)
        say(f"all stages are complete; the last one's weights: {stages[-1].folder}")
    return True
