"""Patterns with fields: which files they find, and what a field tells."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from preprocessing.files import FilesConfig, fill, match


@pytest.mark.parametrize(
    ("pattern", "path", "texts"),
    [
        ("{name}.tif", "/a/b/one.tif", {"name": "one"}),
        ("images/{name}.tif", "/a/images/one.tif", {"name": "one"}),
        ("{class}/{name}.tif", "/a/River/River_1.tif", {"class": "River", "name": "River_1"}),
        ("{name}/{name}_{band}.tif", "/a/P_1/P_1_B02.tif", {"name": "P_1", "band": "B02"}),
        ("{name}_S2Hand.tif", "/a b/Spain_7_S2Hand.tif", {"name": "Spain_7"}),
    ],
)
def test_a_pattern_matches_the_end_of_a_path_and_is_filled_with_the_same(pattern, path, texts):
    folder, found = match(pattern, Path(path))
    assert found == texts
    assert folder / fill(pattern, found) == Path(path)


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("images/{name}.tif", "/a/labels/one.tif"),
        ("{name}/{name}_{band}.tif", "/a/P_1/P_2_B02.tif"),
        ("{name}.tif", "/a/one.tiff"),
        ("{name}.tif", "/a/oneXtif"),
    ],
)
def test_other_paths_do_not_match(pattern, path):
    assert match(pattern, Path(path)) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": "a.tif"}, r"no field \{name\}"),
        ({"images": "{name}_{band}.tif"}, "one file a band"),
        ({"images": "{2024}/{name}.tif"}, r"field \{2024\} .* must begin with a letter"),
        ({"layers": ()}, "one file a band"),
        ({"layers": ("B02", "-", "-", "B02")}, "listed twice"),
        ({"labels": "masks/{other}.png"}, r"field \{other\} is not in `images`"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        FilesConfig(**{"images": "{name}.tif", "layers": ("B02", "-", "-", "B03"), "level": "L2A"} | changes)
