"""The page that travels with exported weights: what they expect, what trained them, what they scored, whose data it was."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import ContractError, PipelineError
from pipeline.manifest import read
from training import journal
from training.architecture import SIZES
from training.checkpoint import DataRecord, SetRecord, State, newest, read_state
from training.names import METRICS, meaning
from training.provenance import Provenance

_TOLD = ("loss", "loss_{sensor}", "probe_{score}", "{split}_{score}")
"""Metrics that say something of weights, and not of the machine that made them."""


@dataclass(frozen=True)
class Licences:
    """Under which terms the training data of some weights is."""

    notices: tuple[str, ...]
    """As the sources state them."""
    unlabelled: tuple[str, ...]
    """Shard sets with scenes whose source states none."""
    named: str | None = None
    """What the exporting person states for those."""

    @classmethod
    def of(cls, state: State, named: str | None) -> Licences:
        """Collect those of all sets of a run; raises `ContractError` where one states none and none is named."""
        sets, lost = sources(state)
        found = {one: provenance(one) for one in sets}
        unlabelled = list(dict.fromkeys(s.name for s, p in found.items() if p is None or p.unlabelled))
        # a checkpoint of format 1 does not even name its sets
        unlabelled += lost if found else ["the shard set"]
        if unlabelled and not named:
            raise ContractError(
                f"no licence is known for scenes of {', '.join(unlabelled)}, so these weights cannot say whose data"
                " trained them: give the data's licence, --licence NAME, or train on sets whose `licence` is set"
                " where they are made."
            )
        # each once: sets of one source state the same
        notices = sorted({n for p in found.values() if p for n in p.notices})
        return cls(tuple(notices), tuple(unlabelled), named if unlabelled else None)

    def lines(self) -> Iterable[str]:
        """Yield a line for each licence or notice."""
        yield from self.notices
        if self.unlabelled:
            yield f"{', '.join(self.unlabelled)}: {self.named} (stated at export; the source states none)."


def sources(state: State) -> tuple[list[SetRecord], list[str]]:
    """Return the sets that trained weights, those of the weights they began from too, and what cannot be known."""
    sets, seen = list(state.data.sets), set[str]()
    # seen: folders are made anew under old names, and two may then name each other
    while (init := state.config.get("init")) and init not in seen:
        seen.add(init)
        try:
            state = read_state(newest(Path(init)))
        except PipelineError:
            return sets, [f"the weights it began from, {init}, which are no longer there"]
        sets += [one for one in state.data.sets if one.digest not in {s.digest for s in sets}]
    return sets, []


def provenance(one: SetRecord) -> Provenance | None:
    """Return where a set comes from, as the run recorded it, or as the set still tells; None where neither does."""
    if one.provenance is not None:
        return one.provenance
    try:
        made = read(Path(one.path))
    except PipelineError:
        return None
    # another set may lie there by now
    return Provenance.of(made) if made.digest() == one.digest else None


def card(state: State, licences: Licences, run: Path) -> str:
    """Return the model card as Markdown."""
    parts = [
        _head(state),
        _use(state),
        *(_contract(name, record) for name, record in state.data.sensors.items()),
        _data(state, licences),
        _metrics(state, run),
    ]
    return "\n".join(parts)


def _head(state: State) -> str:
    sensors, model = ", ".join(state.data.sensors), state.config["model"]
    tags = "".join(f"- {tag}\n" for tag in ("remote-sensing", "multispectral", *state.data.sensors))
    return (
        f"---\nlicense: other\nlibrary_name: pytorch\ntags:\n{tags}---\n"
        f"# Encoder for images of {sensors}\n\n"
        f"A {model['size']} transformer over spectral cubes of {model['patch_px']} x {model['patch_px']} px, from step"
        f" {state.step} of a run of kind `{state.kind}`. `config.json` says the same to programs.\n"
    )


def _use(state: State) -> str:
    name, record = next(iter(state.data.sensors.items()))
    sensor = f', sensor="{name}"' if len(state.data.sensors) > 1 else ""
    px, bands = record.image_px, len(record.bands)
    return f"""## Use
Needs torch and safetensors; the code lies beside the weights.
```python
import sys, torch
sys.path.insert(0, "FOLDER")
from spectral_backbone import load_backbone

backbone = load_backbone("FOLDER"{sensor})
image = torch.zeros(1, {bands}, {px}, {px})          # reflectance x 10 000; the module normalises
vector = backbone(image)                   # [1, {backbone_width(state)}]
maps = backbone.feature_maps(image, 4)     # from four depths, [1, {backbone_width(state)}, y, x] each
```
"""


def backbone_width(state: State) -> int:
    """Return the width of an encoder's tokens."""
    return SIZES[state.config["model"]["size"]].width


def _contract(sensor: str, record: DataRecord) -> str:
    contract = record.contract
    bands = [contract.bands[i] for i in contract.band_positions(record.bands)]
    rows = [
        [
            *(b.name, b.role, f"{b.centre_nm:g}", f"{b.width_nm:g}", f"{b.source_gsd_m:g}"),
            *(f"{v:.4f}" for v in (s.mean, s.std, s.low, s.high)),
        ]
        for b, s in zip(bands, record.statistics, strict=True)
    ]
    head = ("band", "role", "centre nm", "width nm", "measured at m", "mean", "std", "0.5 %", "99.5 %")
    return (
        f"## Data contract: {sensor}\n"
        f"Level {contract.level}, {contract.gsd_m:g} m a pixel, images of {record.image_px} px, one unit is"
        f" {contract.scale:g} reflectance, {contract.nodata} is no measurement; normalised by `{record.normalise}`."
        f" Bands in order, with reflectance over the training pixels:\n\n{_table(head, rows)}\n"
    )


def _data(state: State, licences: Licences) -> str:
    rows = [_source(one, provenance(one)) for one in sources(state)[0]]
    head = ("shard set", "digest", "samples", "weight", "scenes", "read by", "acquired")
    notices = "\n".join(f"- {line}" for line in licences.lines())
    return (
        f"## Training data\nDigest of all that was read, in its shares and order: `{state.data.digest}`."
        " Sets of the weights that training began from stand here too.\n\n"
        f"{_table(head, rows)}\n\n### Licences and notices\nTerms of the data; keep them with the weights.\n\n{notices}\n"
    )


def _source(one: SetRecord, known: Provenance | None) -> tuple[str, ...]:
    weight = "-" if one.weight is None else f"{one.weight:g}"
    own = (one.name, f"`{one.digest}`", str(one.samples), weight)
    if known is None:
        return (*own, "?", "?", "?")
    return (*own, str(known.scenes), ", ".join(known.readers), " to ".join(known.acquired) or "?")


def _metrics(state: State, run: Path) -> str:
    last: dict[str, tuple[int, float]] = {}
    for line in journal.read(run):
        # the run may have gone on past the weights that are exported
        if line.step <= state.step:
            last |= {name: (line.step, value) for name, value in line.metrics.items()}
    wanted = {METRICS[name] for name in _TOLD}
    rows = [
        (name, f"{value:.5g}", str(step), meaning(name) or "")
        for name, (step, value) in sorted(last.items())
        if meaning(name) in wanted
    ]
    if not rows:
        return "## Metrics\nThe run's journal has none.\n"
    return f"## Metrics\nThe last of each in the run's journal.\n\n{_table(('metric', 'value', 'step', ''), rows)}\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    # a name of somebody else's may hold a bar
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
