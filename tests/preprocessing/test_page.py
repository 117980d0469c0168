"""The quality page is whole, needs nothing else, and shows the numbers of quality.json."""

import json
import re
from html.parser import HTMLParser

import pytest

from pipeline import manifest as manifests
from preprocessing import charts, page
from preprocessing.charts import Footprint, Histogram

VOID = {"meta", "img", "br"}


class Outline(HTMLParser):
    """Checks that elements close in order, and collects headings and links."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.headings, self.links, self.wrong = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.links += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)


@pytest.fixture(scope="module")
def tree(shard_set):
    return json.loads((shard_set / "quality.json").read_text())


def drawn(shard_set, tree, **changes) -> Outline:
    return Outline(page.page(manifests.read(shard_set), tree | changes, shard_set))


def test_the_page_is_whole_and_needs_nothing_else(shard_set):
    text = (shard_set / "quality.html").read_text()
    outline = Outline(text)
    assert (outline.wrong, outline.open) == ([], [])
    assert outline.links
    assert all(link.startswith("data:image/png;base64,") for link in outline.links)
    assert "http" not in re.sub(r"data:[^\"]*", "", text)
    expected = ["Where", "Scenes", "Tiles", "Bands", "Indices", "Leakage", "Tiles of train", "Tiles of val"]
    assert [h for h in outline.headings if h in expected] == expected


def test_the_numbers_are_those_of_the_set(shard_set, tree):
    made = manifests.read(shard_set)
    (scene,) = tree["scenes"].values()
    assert tree["leakage"] == {
        "pairs": 0,
        "compared": made.samples("train") + made.samples("val"),
        "examples": [],
    }
    # every place of a tile has its fate
    assert [len(row) for row in scene["fates"]] == [8] * 8
    named = {
        name: sum(row.count(k) for row in scene["fates"]) for k, name in tree["histograms"]["letters"].items()
    }
    assert {name: n for name, n in named.items() if n} == tree["tiles"]
    assert scene["valid_share"] >= scene["clear_share"] > 0
    assert len(scene["footprint"]) == 4
    # the histogram after is that of the statistics
    for name, counts in tree["histograms"]["bands"].items():
        assert sum(counts["after"]) == tree["bands"][name]["n"] == scene["bands"][name]["n"]
        assert scene["valid_share"] * 384**2 - 1 <= sum(counts["before"]) <= 384**2
    cells = (made.samples("train") + made.samples("val")) * 36
    assert all(0 < sum(counts) <= cells for counts in tree["histograms"]["indices"].values())


def test_rejected_and_duplicate_scenes_are_listed_and_escaped(shard_set, tree):
    rejected = [{"product": "/a/<b>.SAFE", "reason": "no band <script>"}]
    text = page.page(manifests.read(shard_set), tree | {"rejected": rejected}, shard_set)
    assert "&lt;b&gt;.SAFE" in text
    assert "<script>" not in text
    assert "Rejected scenes" in Outline(text).headings
    outline = drawn(shard_set, tree, duplicates=[{"text": "a is b"}], not_selected={"after date_to": 3})
    assert {"One acquisition twice", "Not selected"} <= set(outline.headings)


def test_scenes_without_a_place_need_no_map(shard_set, tree):
    assert "Where" not in drawn(shard_set, tree, map=[]).headings


def test_a_map_shows_small_scenes_as_dots_and_large_ones_as_outlines():
    def square(lon: float, lat: float, side: float) -> list[list[float]]:
        return [[lon, lat], [lon + side, lat], [lon + side, lat - side], [lon, lat - side]]

    far = charts.footprint_map(
        [Footprint("a", square(10, 50, 0.01), 1), Footprint("b", square(-60, -20, 30), 0)]
    )
    assert (far.count("<circle"), far.count("<polygon")) == (1, 1)
    assert "50° N" in far
    near = charts.footprint_map([Footprint("a", square(10, 50, 0.01), 0.5)])
    assert near.count("<polygon") == 1


def test_nice_steps_and_colours():
    assert [charts.nice(v) for v in (0.3, 1, 1.2, 3, 7, 60)] == [0.5, 1, 2, 5, 10, 100]
    assert (charts.blue(0), charts.blue(1)) == ("#dee2e6", "#0c5c94")
    assert charts.colour("unheard-of") == charts.COLOURS["other"]


def test_a_histogram_without_counts_is_flat_and_no_error():
    assert "NaN" not in charts.histogram(Histogram("NDVI", [0] * 10))
    assert charts.stacked({}).startswith("<svg")
    assert charts.tile_map([], {}, "t") == ""
