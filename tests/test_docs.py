"""What the pages say is so: the reference is up to date, links and anchors lead somewhere, named keys exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from pipeline import reference
from pipeline.config import Config, load
from pipeline.contract import DataContract
from pipeline.manifest import Manifest
from pipeline.sample import Flag, Sample, encode
from preprocessing.settings import ShardConfig
from tests.pages import ROOT, blocks, pages
from training.checkpoint import State
from training.finetune import FinetuneConfig
from training.predict import PredictConfig
from training.pretrain import PretrainConfig

PAGES = pages()


def maker() -> ModuleType:
    """Return `.ci/docs.py`, which `make docs` runs, as a module."""
    spec = importlib.util.spec_from_file_location("docs_maker", ROOT / ".ci/docs.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def docs() -> ModuleType:
    return maker()


def test_what_is_made_from_the_code_is_up_to_date(docs: ModuleType) -> None:
    assert PAGES[docs.PAGE] == docs.configuration(), "run make docs"
    for page, parts in docs.PARTS.items():
        assert PAGES[page] == docs.with_parts(PAGES[page], parts), "run make docs"


def anchors(text: str) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    titles = re.findall(r"^#+ (.+)$", without_blocks, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def links(text: str) -> Iterator[str]:
    """Yield where the links and pictures of a page lead."""
    without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    yield from re.findall(r"\]\(([^)\s]+)\)", without_blocks)
    yield from re.findall(r'<img[^>]* src="([^"]+)"', without_blocks)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_and_anchor_resolves(page: str) -> None:
    wrong = []
    for link in links(PAGES[page]):
        if link.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            wrong.append(link)
    assert wrong == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    seen, ahead = set(), ["README.md"]
    while ahead:
        page = ahead.pop()
        seen.add(page)
        targets = ((ROOT / page).parent / link.partition("#")[0] for link in links(PAGES[page]))
        names = {str(t.resolve().relative_to(ROOT)) for t in targets if t.suffix == ".md" and t.exists()}
        ahead += sorted(names - seen)
    assert set(PAGES) - seen == set()


def test_readme_stays_within_two_screens_and_pictures_are_small() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 130
    for picture in (ROOT / "docs/images").iterdir():
        assert picture.stat().st_size < 150_000, picture


def known_keys(docs: ModuleType) -> set[str]:
    """Return every key of every configuration, and the groups they stand in."""
    paths = (key.path for _, model, _ in docs.SECTIONS.values() for key in reference.keys(model))
    parts = [path.replace("[]", "").split(".") for path in paths]
    return {".".join(part[:count]) for part in parts for count in range(1, len(part) + 1)}


def named_keys(text: str, known: set[str]) -> Iterator[str]:
    """Yield what a page writes as a key: a word `a.b=c`, or `a.b` whose first part is a group of keys."""
    groups = {key.partition(".")[0] for key in known if "." in key}
    quoted = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    for word in " ".join([*quoted, *blocks(text, "bash")]).split():
        name, equals, _ = word.strip("'\"").partition("=")
        dotted = (
            name.partition(".")[0] in groups and "." in name and not name.endswith((".py", ".safetensors"))
        )
        if re.fullmatch(r"[a-z_]+(\.[a-z_]+)*", name) and (equals or dotted):
            yield name


@pytest.mark.parametrize("page", PAGES)
def test_every_key_that_a_page_names_is_one(page: str, docs: ModuleType) -> None:
    known = known_keys(docs)
    assert sorted(set(named_keys(PAGES[page], known)) - known - {"a.b"}) == []


def first_column(text: str, heading: str) -> list[str]:
    """Return the names in the first column of the tables below a heading, up to the next one."""
    section = re.split(r"^#+ ", text.split(f"\n{heading}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]
    cells = re.findall(r"^\| (`.+?`|\d+) \|", section, flags=re.MULTILINE)
    return [name.strip("`") for name in cells]


@pytest.mark.parametrize(
    ("heading", "model"), [("## Manifest", Manifest), ("### Data contract", DataContract)]
)
def test_the_specification_names_every_field(heading: str, model: type[Config]) -> None:
    assert sorted(first_column(PAGES["docs/formats.md"], heading)) == sorted(model.model_fields)


def test_the_specification_of_a_checkpoint_names_files_and_fields() -> None:
    files = {"weights.safetensors", "moments.safetensors", "state.json", "MANIFEST.json"}
    assert set(first_column(PAGES["docs/formats.md"], "## Checkpoint")) == files | set(State.model_fields)


def test_the_specification_of_a_shard_is_what_is_written() -> None:
    pixels = np.zeros((2, 8, 8), np.int16)
    one = Sample("a", pixels, np.zeros((8, 8), np.uint8), np.zeros((1, 1, 1, 3), np.float32), after=pixels)
    labels = (1, (1, 2), np.zeros((8, 8), np.uint8))
    written = {suffix for label in labels for suffix in encode(replace(one, label=label))}
    assert set(first_column(PAGES["docs/formats.md"], "## Shard")) == written
    assert first_column(PAGES["docs/formats.md"], "### Mask") == [str(int(flag)) for flag in Flag]


def test_every_fault_is_listed_with_tests_that_carry_its_number() -> None:
    rows = re.findall(r"^\| ([TP]\d\d) \|.*\| ([^|]+) \|$", PAGES["docs/faults.md"], flags=re.MULTILINE)
    assert [name for name, _ in rows] == [f"T{n:02}" for n in range(1, 23)] + [
        f"P{n:02}" for n in range(1, 20)
    ]
    for name, files in rows:
        for file in re.findall(r"`([^`]+)`", files):
            assert re.search(rf"^def test_(\w+_)?{name.lower()}_", (ROOT / file).read_text(), re.MULTILINE), (
                name,
                file,
            )


ENTRIES = {
    "pretrain": PretrainConfig,
    "finetune": FinetuneConfig,
    "predict": PredictConfig,
    "shard": ShardConfig,
}


def inline_commands(text: str) -> Iterator[str]:
    """Yield the commands that a page writes within a line: the blocks' are run."""
    quoted = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    yield from (piece for piece in quoted if re.match(r"(python|bash|sbatch|make) \S", piece))


def entry_of(words: list[str]) -> str:
    """Return the file that a command starts; the words before it are options of sbatch."""
    (found,) = (word for word in words if re.search(r"\.(py|sh)$", word))
    return found


@pytest.mark.parametrize("page", [page for page in PAGES if any(inline_commands(PAGES[page]))])
def test_commands_within_lines_could_be_given(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for command in inline_commands(PAGES[page]):
        program, *words = shlex.split(command)
        if program == "make":
            assert words[0] in targets, command
        elif words[0] not in ("-m", "-c"):
            entry = entry_of(words)
            assert (ROOT / entry).exists(), command
            configures(entry, words[words.index(entry) + 1 :])


def configures(entry: str, words: list[str]) -> None:
    """Load the configuration that a command gives, where it gives a whole one."""
    kind = Path(entry).stem
    given = [word for word in words if not word.startswith("-")]
    if kind in ENTRIES and not any(word.isupper() for word in given):
        files = [ROOT / word for word in given if word.endswith(".yaml")]
        path = files[0] if files else ROOT / f"configs/{kind}/default.yaml"
        load(ENTRIES[kind], path, [word for word in given if "=" in word])


def test_the_two_commands_that_the_walk_leaves_out_are_run_by_ci() -> None:
    steps = (ROOT / ".ci/run").read_text()
    assert all(f" {command}\n" in steps for command in ("make test", "make check"))


ENTRY_FILES = sorted(
    str(path.relative_to(ROOT))
    for room in ("preprocessing", "training")
    for path in (ROOT / room).glob("*.py")
    if '__name__ == "__main__"' in path.read_text()
)


@pytest.mark.parametrize("entry", ENTRY_FILES)
def test_every_entry_has_examples_in_its_help_that_could_be_given(entry: str) -> None:
    text = (ROOT / entry).read_text()
    # the docstring says how it is called; what --help shows stands in a text of its own
    shown = text.split('"""', 2)[2]
    examples = re.findall(rf"python {re.escape(entry)}\b([^\"\n\\]*)", shown)
    assert examples, f"{entry} has no example under --help"
    for example in examples:
        # words about an example stand some way behind it
        configures(entry, shlex.split(re.split(r"\s{3,}", example.rstrip())[0]))
