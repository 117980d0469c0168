"""`quality.html`: the report as one page that needs nothing else, no network and no script."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.manifest import Manifest
from pipeline.sample import Sample
from preprocessing import charts, pictures
from preprocessing.charts import Footprint, Histogram

NAME = "quality.html"
TILES = 24
"""On the contact sheet of each split."""
MAPS = 48
"""Scenes whose tiles are drawn; the others stand in `scenes.jsonl`."""
FEW = 6
"""Up to so many scenes are drawn large."""
EDIT = (
    "Remove a product's line from <code>rejected.csv</code> and start again to have it tried again; add one to leave"
    " a product out."
)
LEFT_OUT = (
    "Values that cannot be reflectance: these scenes give nothing to the statistics, but their tiles are in the set."
    " Add them to <code>rejected.csv</code> and start again to leave them out."
)
UNLIKE = (
    "More than half of a scene's training pixels lie outside the 0.5 and 99.5 % quantiles of all other scenes: the only"
    " snow or desert, or a wrong offset. They count in the statistics like the others."
)
SPLITS = ("train", "val", "test")
Tree = Mapping[str, Any]

STYLE = """
:root{--ink:#1d242c;--soft:#667180;--line:#e3e7ec;--paper:#fff;--back:#f4f6f8;--blue:#0c5c94;--green:#2a9d6f}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",sans-serif}
main{max-width:1080px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;margin:0}h1+p{margin:2px 0 20px;color:var(--soft)}
section{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:18px 22px;
margin:16px 0}
h2{font-size:17px;margin:0 0 4px}section>p{margin:0 0 12px;color:var(--soft)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(145px,1fr));gap:12px}
.card{background:var(--paper);border:1px solid var(--line);border-radius:10px;padding:12px 16px}
.card b{display:block;font-size:24px;line-height:1.25;font-variant-numeric:tabular-nums}
.card span{color:var(--soft);font-size:13px}
.card.bad b{color:#c0392b}.card.good b{color:var(--green)}
svg{display:block;width:100%;height:auto}.map{border-radius:6px}.sea{fill:#eef3f6}
.line{stroke:#cfd9e0;fill:none}.scene{stroke:#083a5e;stroke-width:1;fill-opacity:.72}
.small{font-size:11px;fill:var(--soft)}.axis{stroke:#aab3bd}
.mark{stroke:#c0392b;stroke-dasharray:3 3;stroke-opacity:.75}
.after{fill:#58a4d6;fill-opacity:.75}.before{fill:none;stroke:#444c56;stroke-opacity:.8}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(235px,1fr));gap:18px 22px}
figure{margin:0}
figcaption{font-weight:600;font-size:13px;display:flex;justify-content:space-between;gap:8px;
overflow-wrap:anywhere}
figcaption span{font-weight:400;color:var(--soft);white-space:nowrap}
table{border-collapse:collapse;width:100%;font-size:13px}th{text-align:left;color:var(--soft);font-weight:500}
th,td{padding:5px 10px 5px 0;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}td.w{white-space:nowrap}
.bar{height:12px;border-radius:3px;overflow:hidden;margin-top:4px}
.legend{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:13px;margin:0 0 12px;color:var(--soft)}
.legend i{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:5px;vertical-align:-1px}
.maps{display:grid;grid-template-columns:repeat(auto-fill,minmax(var(--side),1fr));gap:14px;margin-top:16px}
.maps figcaption{font-weight:400;font-size:11px;color:var(--soft);margin-bottom:3px}
.sheet{display:grid;grid-template-columns:repeat(auto-fill,minmax(230px,1fr));gap:12px}
.sheet img{width:100%;display:block;border-radius:4px}
.sheet figcaption{font-weight:400;color:var(--soft);font-size:11px}
details summary{cursor:pointer;color:var(--blue)}
pre{overflow:auto;font-size:12px;background:var(--back);padding:12px;border-radius:6px}
footer{color:var(--soft);font-size:13px}.none{color:var(--soft)}
"""


def page(made: Manifest, tree: Tree, folder: Path) -> str:
    """Return the page of a set in a folder, whose report is `tree`."""
    contract = made.contract
    title = f"{contract.sensor} {contract.level}, {contract.gsd_m:g} m, {contract.tile_px} px tiles"
    sections = "".join(
        f"<section><h2>{heading}</h2><p>{explained}</p>{body}</section>"
        for heading, explained, body in _sections(made, tree, folder)
        if body
    )
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{made.name}</title>'
    )
    notices = "<br>".join(map(escape, made.notices))
    return (
        f'<!doctype html><html lang="en"><head>{head}<style>{STYLE}</style></head><body><main>'
        f"<h1>{escape(made.name)}</h1><p>{escape(title)}</p>{_cards(made, tree)}{sections}"
        f"<footer>{notices}<br>Made by version {__version__}; all numbers are in quality.json, those of every scene in"
        " scenes.jsonl.</footer>"
        "</main></body></html>\n"
    )


def _cards(made: Manifest, tree: Tree) -> str:
    tiles = tree["tiles"]
    # as stored, compressed: what a disk or a transfer has to hold
    size = sum(s.size_bytes for part in made.splits.values() for s in part)
    # the one number that must be 0 stands among the first
    leaks, totals = tree["leakage"]["pairs"], tree["totals"]
    cards = [("scenes", f"{len(made.scenes):,}", "")]
    cards += [(f"tiles to {name}", f"{made.samples(name):,}", "") for name in made.splits]
    cards += [
        ("tiles dropped", f"{sum(n for name, n in tiles.items() if name not in made.splits):,}", ""),
        ("scenes rejected", f"{totals['rejected']:,}", "bad" if totals["rejected"] else ""),
        ("duplicates", f"{totals['duplicates']:,}", ""),
        ("tile pairs that leak", f"{leaks}", "bad" if leaks else "good"),
        ("of shards", f"{size / 1e6:,.0f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB", ""),
    ]
    body = "".join(f'<div class="card {kind}"><b>{n}</b><span>{name}</span></div>' for name, n, kind in cards)
    return f'<div class="cards">{body}</div>'


def _sections(made: Manifest, tree: Tree, folder: Path) -> Iterator[tuple[str, str, str]]:
    """Yield heading, explanation and content; sections without content are left out."""
    yield "Where", "Footprints of the scenes; the bluer, the larger their clear share.", _map(tree)
    yield "Scenes", "What was measured, what was clear, and what became of the tiles.", _scenes(tree)
    yield (
        "Tiles",
        "Every place a tile could lie, as it lies in the scene.",
        charts.legend(sorted(tree["tiles"], key=_order)) + _tile_maps(tree),
    )
    yield (
        "Bands",
        "Filled: clear pixels of the training tiles, in reflectance, which the statistics are made of. Line: all"
        " measured pixels of the scenes, clouds and all. Dashed: the 0.5 and 99.5 % quantiles.",
        _bands(tree),
    )
    yield "Left out of the statistics", LEFT_OUT, _left_out(tree)
    yield "Scenes unlike all others", UNLIKE, _unlike(tree)
    yield "Indices", "Means of the statistics cells of all samples.", _indices(made, tree)
    yield "Rejected scenes", EDIT, _rejected(tree)
    yield (
        "One acquisition twice",
        "The later version leads; others give only ground of their own.",
        _duplicates(tree),
    )
    yield "Not selected", "Products that <code>select</code> left out.", _counts(tree["not_selected"])
    yield "Leakage", "Training and other tiles that share ground.", _leaks(tree)
    for split in made.splits:
        samples = pictures.first_samples(folder, made, split, TILES)
        explained = "In natural colours, and beside it the saliency that guides masking: bright is salient."
        yield f"Tiles of {escape(split)}", explained, _sheet(made, samples)
    settings = escape(json.dumps(made.settings, indent=1, sort_keys=True))
    yield "Settings", "", f"<details><summary>All settings</summary><pre>{settings}</pre></details>"


def _map(tree: Tree) -> str:
    footprints = [Footprint(**one) for one in tree["map"]]
    return charts.footprint_map(footprints) if footprints else ""


def _order(name: str) -> tuple[int, str]:
    return (SPLITS.index(name) if name in SPLITS else len(SPLITS), name)


def _ordered(tiles: Mapping[str, int]) -> dict[str, int]:
    return {name: tiles[name] for name in sorted(tiles, key=_order)}


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], kinds: str = "", rest: str = "") -> str:
    """Lay out a table; kinds: one letter a column, `n` for numbers, `w` for what must not wrap; rest: said below."""
    marks = [f' class="{k}"' if k.strip() else "" for k in kinds.ljust(len(header))]
    head = "".join(f"<th{m}>{h}</th>" for h, m in zip(header, marks, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{m}>{c}</td>" for c, m in zip(row, marks, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>{rest}"


def _rest(tree: Tree, what: str, shown: int, file: str) -> str:
    """Say how many of a list that was cut are not shown, and where they stand."""
    more = tree["totals"][what] - shown
    return f'<p class="none">and {more:,} more in {file}</p>' if more > 0 else ""


def _scenes(tree: Tree) -> str:
    rows = [
        [
            escape(name),
            escape(s["acquired"][:10]),
            f"{s['valid_share']:.0%}",
            f"{s['clear_share']:.0%}",
            f"{sum(n for part, n in s['tiles'].items() if part in SPLITS):,}",
            charts.stacked(_ordered(s["tiles"])),
        ]
        for name, s in tree["scenes"].items()
    ]
    rest = _rest(tree, "scenes", len(rows), "scenes.jsonl")
    return _table(["scene", "date", "valid", "clear", "samples", "tiles"], rows, " wnnnw", rest)


def _tile_maps(tree: Tree) -> str:
    letters = tree["histograms"]["letters"]
    # a page of a thousand maps would open in no browser
    shown = list(tree["scenes"].items())[:MAPS]
    side = 132 if len(shown) > FEW else 300
    maps = [(name, charts.tile_map(s["fates"], letters, name, side)) for name, s in shown]
    body = "".join(f"<figure><figcaption>{escape(name)}</figcaption>{drawn}</figure>" for name, drawn in maps)
    counts = _ordered(tree["tiles"])
    total = max(sum(counts.values()), 1)
    rows = [[escape(name), f"{n:,}", f"{n / total:.1%}"] for name, n in counts.items()]
    rest = _rest(tree, "scenes", len(shown), "scenes.jsonl")
    return (
        _table(["", "tiles", "share"], rows, " nn")
        + f'<div class="maps" style="--side:{side + 8}px">{body}</div>{rest}'
    )


def _bands(tree: Tree) -> str:
    found = tree["histograms"]
    ends = _ends(tree)
    low, high = found["reflectance"]
    drawn = []
    for name, counts in found["bands"].items():
        statistics = tree["bands"][name]
        # cut to one axis for all: histograms side by side must be comparable
        first, last = (round((e - low) / (high - low) * len(counts["after"])) for e in ends)
        note = f"mean {statistics['mean']:.3f}, deviation {statistics['std']:.3f}"
        part = slice(first, last)
        drawn.append(
            charts.histogram(
                Histogram(name, counts["after"][part], counts["before"][part], ends,
                          (statistics["low"], statistics["high"]), note)
            )
        )  # fmt: skip
    return f'<div class="grid">{"".join(drawn)}</div>'


def _ends(tree: Tree) -> tuple[float, float]:
    """Return the part of the reflectance axis where training pixels lie: one for all bands, clouds may leave it."""
    low, high = tree["histograms"]["reflectance"]
    last = max((statistics["high"] for statistics in tree["bands"].values()), default=high)
    # whole tenths, so that the axis reads well
    return low, min(max(math.ceil(last * 11) / 10, low + 0.2), high)


def _indices(made: Manifest, tree: Tree) -> str:
    contract = made.contract
    drawn = (
        charts.histogram(Histogram(name, counts, ends=(-1.0, 1.0)))
        for name, counts in tree["histograms"]["indices"].items()
        if counts
    )
    rows = [
        [
            escape(name),
            f"<code>{escape(contract.index(name).text)}</code>",
            ", ".join(contract.index_bands[name]),
        ]
        for name in contract.indices
    ]
    table = _table(["index", "formula on reflectance, clipped to -1 and 1", "bands"], rows, "w w")
    return f'<div class="grid">{"".join(drawn)}</div>{table}'


def _rejected(tree: Tree) -> str:
    rows = [[escape(Path(r["product"]).name), escape(r["reason"])] for r in tree["rejected"]]
    rest = _rest(tree, "rejected", len(rows), "rejected.csv")
    return _table(["product", "reason"], rows, rest=rest) if rows else ""


def _duplicates(tree: Tree) -> str:
    rows = [[escape(d["text"])] for d in tree["duplicates"]]
    rest = _rest(tree, "duplicates", len(rows), "duplicates.csv")
    return _table(["decision"], rows, rest=rest) if rows else ""


def _left_out(tree: Tree) -> str:
    rows = [[escape(name), escape(reason)] for name, reason in tree["left_out_of_statistics"].items()]
    rest = _rest(tree, "left_out_of_statistics", len(rows), "scenes.jsonl")
    return _table(["scene", "reason"], rows, rest=rest) if rows else ""


def _unlike(tree: Tree) -> str:
    rows = [[escape(u["scene"]), escape(u["band"]), f"{u['share']:.0%}"] for u in tree["unlike"]]
    rest = _rest(tree, "unlike", len(rows), "scenes.jsonl")
    return _table(["scene", "band", "outside"], rows, " wn", rest) if rows else ""


def _counts(counts: Mapping[str, int]) -> str:
    return (
        _table(["reason", "products"], [[escape(k), f"{n:,}"] for k, n in counts.items()], " n")
        if counts
        else ""
    )


def _leaks(tree: Tree) -> str:
    found = tree["leakage"]
    if not found["pairs"]:
        return f"None among {found['compared']:,} tiles."
    rows = [[escape(a), escape(b)] for a, b in found["examples"]]
    return f"{found['pairs']:,} pairs." + _table(["training tile", "other tile"], rows)


def _sheet(made: Manifest, samples: Sequence[Sample]) -> str:
    figures = []
    for one in samples:
        pair = pictures.sheet([pictures.natural_colours(made, one), pictures.heat(one)], 2)
        figures.append(
            f"<figure>{charts.image(pair, title=one.key)}<figcaption>{escape(one.key)}</figcaption></figure>"
        )
    return f'<div class="sheet">{"".join(figures)}</div>'
