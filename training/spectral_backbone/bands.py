"""Which channels of somebody's images are the bands that a model knows: refused band by band, or adapted when asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

Asked = Sequence[str] | Mapping[str, tuple[float, float]]
"""Bands of images, channel by channel: names, or names with (centre wavelength, bandwidth) in nm."""


class BandMismatch(ValueError):  # noqa: N818 - it reads as what it is
    """Images whose bands are not those of the weights; its message has a line for each band."""


@dataclass(frozen=True)
class Band:
    """A band by its name; wavelengths are None where a name is all that is known."""

    name: str
    centre_nm: float | None = None
    width_nm: float | None = None

    def is_like(self, known: Band) -> bool:
        """Whether this is the known band: the same name and, where it tells one, about the same wavelength."""
        if self.name != known.name:
            return False
        if self.centre_nm is None or known.centre_nm is None or known.width_nm is None:
            return True
        # two satellites' versions of a band lie a few nm apart, well within its width
        return abs(self.centre_nm - known.centre_nm) <= known.width_nm / 2

    def __str__(self) -> str:
        """Return name and wavelength for people."""
        return self.name if self.centre_nm is None else f"{self.name} {self.centre_nm:.0f} nm"


@dataclass(frozen=True)
class Known:
    """The bands of the weights, and in which groups."""

    sensor: str
    bands: tuple[Band, ...]
    groups: tuple[tuple[int, ...], ...]
    by_wavelength: bool
    """Whether other bands may make groups of their own: one projection for all groups, positions by wavelength."""


@dataclass(frozen=True)
class Fit:
    """How images of some bands become groups of cubes."""

    names: tuple[str, ...]
    """Bands of the images, channel by channel."""
    groups: tuple[tuple[int, ...], ...]
    """Channels of the images in each group."""
    bands: tuple[Band, ...]
    """The band of each channel in the groups, one group after the other."""
    kept: tuple[int, ...] | None
    """The group of the weights that each group is; None where they are new."""
    told: tuple[str, ...] = ()
    """What was changed, a line each."""


def fit(known: Known, asked: Asked | None, adapt: bool = False) -> Fit:
    """Find the bands of the weights among those of the images.

    Raises `BandMismatch` where they are not the same in the same order; with `adapt` only where nothing sound can be
    done about it.
    """
    given = known.bands if asked is None else _bands(asked)
    if len(given) == len(known.bands) and all(g.is_like(k) for g, k in zip(given, known.bands, strict=True)):
        return _by_name(known, given)
    if not adapt:
        raise BandMismatch(f"{table(known, given)}\nadapt=True takes what can be: {_possible(known)}.")
    by_name = _by_name(known, given)
    # by name as long as it loses no group or no channel; else wavelengths make use of all channels
    everything = len(by_name.groups) == len(known.groups) or len(by_name.bands) == len(given)
    if by_name.groups and everything:
        return by_name
    if known.by_wavelength:
        return _by_wavelength(known, given)
    if not by_name.groups:
        raise BandMismatch(f"{table(known, given)}\nno group of bands is complete: {_possible(known)}.")
    return by_name


def _bands(asked: Asked) -> tuple[Band, ...]:
    found = tuple(Band(n, *asked[n]) if isinstance(asked, Mapping) else Band(n) for n in asked)
    names = [b.name for b in found]
    twice = sorted({n for n in names if names.count(n) > 1})
    if twice:
        raise BandMismatch(f"bands {', '.join(twice)} are listed twice; list each channel once.")
    return found


def table(known: Known, given: Sequence[Band]) -> str:
    """Return the difference between images and weights, a line for each band."""
    rows = [("channel", "images", "weights", "")]
    for channel, (mine, theirs) in enumerate(zip_longest(given, known.bands)):
        what = "same" if mine and theirs and mine.is_like(theirs) else _what(mine, theirs, given, known)
        rows.append((str(channel), str(mine or "-"), str(theirs or "-"), what))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = ["  ".join([*map(str.ljust, row[:3], widths), row[3]]).rstrip() for row in rows]
    head = f"the images' bands are not those that the weights were trained on ({known.sensor}):"
    return "\n  ".join([head, *lines])


def _what(mine: Band | None, theirs: Band | None, given: Sequence[Band], known: Known) -> str:
    """Say what is wrong in a line of the table, of the images' band and of the weights'."""
    parts = []
    if mine is not None:
        same_name = [k for k in known.bands if k.name == mine.name]
        if not same_name:
            parts.append(f"{mine.name} is unknown to the weights")
        elif not mine.is_like(same_name[0]):
            parts.append(f"{mine.name} is another band in the weights, {same_name[0]}")
    if theirs is not None:
        where = [channel for channel, band in enumerate(given) if band.is_like(theirs)]
        parts.append(f"{theirs.name} is channel {where[0]}" if where else f"{theirs.name} is missing")
    return ", ".join(parts)


def _possible(known: Known) -> str:
    names = [b.name for b in known.bands]
    groups = "; ".join(", ".join(names[c] for c in members) for members in known.groups)
    said = f"bands in another order, more bands, or complete groups of them ({groups})"
    if known.by_wavelength:
        return (
            f"{said}; these weights also take other bands, in cubes of {len(known.groups[0])}, by their wavelengths:"
            " bands={name: (centre_nm, width_nm), ...}"
        )
    return f"{said}; these weights know groups by number, so other bands have no place"


def _by_name(known: Known, given: Sequence[Band]) -> Fit:
    """Take the groups whose bands the images have, wherever they stand."""
    place = {
        number: channel
        for number, band in enumerate(known.bands)
        for channel, mine in enumerate(given)
        if mine.is_like(band)
    }
    kept = tuple(t for t, members in enumerate(known.groups) if all(c in place for c in members))
    used = [c for t in kept for c in known.groups[t]]
    groups = tuple(tuple(place[c] for c in known.groups[t]) for t in kept)
    return Fit(
        tuple(b.name for b in given),
        groups,
        tuple(known.bands[c] for c in used),
        kept,
        _told(known, given, used),
    )


def _told(known: Known, given: Sequence[Band], used: Sequence[int]) -> tuple[str, ...]:
    names = [known.bands[c].name for c in sorted(used)]
    lines = [
        ("bands reordered by name", names if [b.name for b in given if b.name in names] != names else []),
        ("channels of the images left out", [b.name for b in given if b.name not in names]),
        ("groups of the weights left out", [b.name for b in known.bands if b.name not in names]),
    ]
    return tuple(f"{what}: {', '.join(which)}" for what, which in lines if which)


def _by_wavelength(known: Known, given: Sequence[Band]) -> Fit:
    """Make groups of whatever bands the images have, by wavelength; raises `BandMismatch` where one is not known."""
    same = {b.name: b for b in known.bands}
    whole = [b if b.centre_nm is not None else same.get(b.name, b) for b in given]
    unknown = [b.name for b in whole if b.centre_nm is None]
    per_cube = len(known.groups[0])
    if unknown or len(given) % per_cube:
        need = f"wavelengths of {', '.join(unknown)}" if unknown else f"a multiple of {per_cube} bands"
        raise BandMismatch(f"{table(known, given)}\nadapting needs {need}: {_possible(known)}.")
    # neighbours share a cube, as in training
    order = sorted(range(len(whole)), key=lambda c: whole[c].centre_nm or 0.0)
    groups = tuple(tuple(order[i : i + per_cube]) for i in range(0, len(order), per_cube))
    told = f"groups placed by wavelength: {', '.join(str(whole[c]) for c in order)}"
    return Fit(tuple(b.name for b in given), groups, tuple(whole[c] for c in order), None, (told,))
