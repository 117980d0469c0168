"""A comparison as one HTML file, for people without the server: no network, no script, pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from pipeline import __version__
from training import curves, seeds
from training.names import SCORES, meaning
from training.recorded import RecordedRun

STYLE = """
*{box-sizing:border-box}
body{margin:0;background:#f4f6f8;color:#1d242c;font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1280px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;margin:0}h1+p,section>p{margin:2px 0 14px;color:#667180}h2{font-size:17px;margin:0}
section{background:#fff;border:1px solid #e3e7ec;border-radius:10px;padding:18px 22px;margin:16px 0;overflow-x:auto}
table{border-collapse:collapse;font-size:13px}td,th{padding:4px 12px 4px 0;text-align:left;vertical-align:top;
border-bottom:1px solid #e3e7ec}th{color:#667180}td{font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(380px,1fr));gap:18px 22px}
figure{margin:0}figcaption{font-weight:600;font-size:13px}img{max-width:100%}
svg{display:block;width:100%;height:auto;font-size:11px;fill:#667180}
.line{stroke:#e3e7ec;fill:none}polyline{fill:none;stroke-width:1.6;stroke-linejoin:round}
i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:6px}
"""
_DRAWN = (
    "loss",
    "grad_norm",
    "lr",
    "mask_top_quartile_shown",
    "mask_lambda",
    "samples_per_s",
    "peak_share",
    "data_wait_share",
)
"""Curves of the page beside the scores, where runs have them."""


@dataclass(frozen=True)
class Shown:
    """What a page shows."""

    experiment: str
    runs: Sequence[RecordedRun]
    """Under names that tell them apart."""
    differing: Mapping[str, Sequence[str]]
    """Kind of run -> parameters in which its runs differ."""
    panels: Mapping[str, Mapping[str, bytes]]
    """Name of a panel -> run -> PNG."""


def wanted(names: Sequence[str]) -> list[str]:
    """Return the metrics that the page draws, of those there are."""
    # by their ends: a split or a probe stands before a score's name
    scores = sorted(n for n in names if n.endswith(SCORES))
    return [*scores, *(n for n in _DRAWN if n in names), *sorted(n for n in names if n.startswith("loss_"))]


def page(shown: Shown) -> str:
    """Return the page of runs that are compared."""
    sections = "".join(
        f"<section><h2>{escape(heading)}</h2><p>{escape(explained)}</p>{body}</section>"
        for heading, explained, body in _sections(shown)
        if body
    )
    # names and parameters are other people's text: all are escaped
    title = f"Runs of {escape(shown.experiment)}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style></head>'
        f"<body><main><h1>{title}</h1><p>{len(shown.runs)} runs, compared by version {__version__}</p>{sections}</main>"
        "</body></html>\n"
    )


def _sections(shown: Shown) -> Iterator[tuple[str, str, str]]:
    """Yield heading, explanation and content; those without content are left out."""
    colours = {run.name: curves.colour(number) for number, run in enumerate(shown.runs)}
    yield (
        "Results",
        "Last value of each run; time from its first start to its last end.",
        _results(shown.runs, colours),
    )
    several = [s for s in seeds.settings(shown.runs) if len(s.runs) > 1]
    yield (
        "Over seeds",
        "Runs that differ in nothing but the seed: mean and 95 % interval by Student's t.",
        _seeds(several),
    )
    # kind by kind: a pretraining and a fine-tuning differ in nearly every key
    for kind, keys in shown.differing.items():
        runs = [run for run in shown.runs if run.kind == kind]
        rows = [[escape(k), *(escape(run.parameters.get(k, "-")) for run in runs)] for k in keys]
        heading = ["parameter", *(escape(run.name) for run in runs)]
        yield (
            f"What differs: {kind}",
            "All other parameters are the same.",
            _table(heading, rows) if rows else "",
        )
    yield "Curves", "Over the steps; a curve under the pointer tells its run.", _curves(shown.runs, colours)
    yield (
        "Panels",
        "What was shown, what was reconstructed from it, and what was there.",
        _panels(shown.panels),
    )


def scores_of(runs: Sequence[RecordedRun]) -> list[str]:
    """Return the names of the scores that runs have, the loss first."""
    return ["loss", *sorted({m for run in runs for m in run.metrics if m.endswith(SCORES)})]


def _results(runs: Sequence[RecordedRun], colours: Mapping[str, str]) -> str:
    metrics = scores_of(runs)
    rows = [
        [
            f'<i style="background:{colours[run.name]}"></i>{escape(run.name)}',
            escape(run.kind),
            run.status.lower(),
            *(f"{run.metrics[m]:.4f}" if m in run.metrics else "-" for m in metrics),
            f"{run.duration_s:.0f} s",
        ]
        for run in runs
    ]
    heads = [f'<span title="{escape(meaning(m) or "")}">{escape(m)}</span>' for m in metrics]
    return _table(["run", "kind", "status", *heads, "time"], rows)


def _seeds(settings: Sequence[seeds.Setting]) -> str:
    metrics = scores_of([run for setting in settings for run in setting.runs])
    rows = [
        [escape(s.name), str(len(s.runs)), *(seeds.told(s.estimate(m)) for m in metrics)] for s in settings
    ]
    return _table(["runs", "seeds", *map(escape, metrics)], rows) if rows else ""


def _curves(runs: Sequence[RecordedRun], colours: Mapping[str, str]) -> str:
    names = wanted(sorted({name for run in runs for name in run.curves}))
    drawn = (
        curves.svg(name, {run.name: run.curves[name] for run in runs if name in run.curves}, colours)
        for name in names
    )
    return f'<div class="grid">{"".join(drawn)}</div>' if names else ""


def _panels(panels: Mapping[str, Mapping[str, bytes]]) -> str:
    figures = (
        f'<figure><figcaption>{escape(run)}: {escape(panel)}</figcaption><img alt="{escape(panel)} of {escape(run)}"'
        f' src="data:image/png;base64,{base64.b64encode(data).decode()}"></figure>'
        for panel, by_run in panels.items()
        for run, data in by_run.items()
    )
    body = "".join(figures)
    return f'<div class="grid">{body}</div>' if body else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{cell}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
