"""Where a shard set's images come from, and under which licences and notices: recorded with a run, told with weights."""

from __future__ import annotations

from pipeline.config import Config
from pipeline.manifest import Manifest


class Provenance(Config):
    """The sources of a shard set, as its manifest tells them."""

    scenes: int
    """Scenes that contributed."""
    readers: tuple[str, ...]
    """What read them."""
    acquired: tuple[str, ...] = ()
    """First and last day, ISO 8601; none where no scene tells its time."""
    notices: tuple[str, ...]
    """Licences and the notices that they require."""
    unlabelled: int = 0
    """Scenes whose source states no licence."""

    @classmethod
    def of(cls, made: Manifest) -> Provenance:
        """Take it from a manifest."""
        days = sorted(scene.acquired[:10] for scene in made.scenes if scene.acquired)
        return cls(
            scenes=len(made.scenes),
            readers=tuple(sorted({scene.reader for scene in made.scenes})),
            acquired=(days[0], days[-1]) if days else (),
            notices=made.notices,
            unlabelled=sum(not scene.licence for scene in made.scenes),
        )
