"""Codes to class numbers, class numbers to labels of the three kinds."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline.errors import SceneError
from preprocessing import labelling
from preprocessing.labelling import LabelConfig
from preprocessing.scenes import Given, Scene

CLASSES = ("water", "forest", "town")


def scene(*classes: str) -> Scene:
    return Scene("s", "sentinel2", "L2A", "geotiff", Path("s.tif"), "", (), given=Given("s", classes))


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float32])
def test_codes_count_from_the_first(kind):
    codes = np.array([[0, 1, 2], [3, 4, 255]]).astype(kind)
    found = labelling.numbers(codes, LabelConfig(classes=CLASSES, first_code=1))
    assert found.tolist() == [[255, 0, 1], [2, 3, 254]]


def test_what_is_no_whole_number_is_no_class():
    codes = np.array([[0, np.nan, 2, np.inf, 0.5]], np.float32)
    for config in (LabelConfig(classes=CLASSES), LabelConfig(classes=CLASSES, codes=(0, 1, 2))):
        assert labelling.numbers(codes, config).tolist() == [[0, 255, 2, 255, 255]]


def test_codes_in_any_order_become_the_places_of_their_classes():
    codes = np.array([[80, 10, 50, -1, 11, 255]], np.int16)
    found = labelling.numbers(codes, LabelConfig(classes=CLASSES, codes=(80, 10, 50)))
    assert found.tolist() == [[0, 1, 2, 255, 255, 255]]


@pytest.mark.parametrize("codes", [(10, 20), (10, 20, 10)])
def test_each_class_needs_a_code_of_its_own(codes):
    with pytest.raises(ValidationError, match="values for 3 classes"):
        LabelConfig(classes=CLASSES, codes=codes)


def test_the_three_kinds_of_label_of_one_tile():
    part = np.full((10, 10), 1, np.uint8)
    part[:3], part[3], part[9] = 0, 7, 255
    by_kind = {
        kind: labelling.of_pixels(part, LabelConfig(kind=kind, classes=CLASSES, min_share=0.3))
        for kind in ("class", "classes", "mask")
    }
    assert by_kind["class"] == 1
    assert by_kind["classes"] == (0, 1)
    # a code beyond the list is no class
    assert by_kind["mask"].tolist() == np.where(part == 7, 255, part).tolist()
    nothing = np.full((10, 10), 255, np.uint8)
    assert all(
        labelling.of_pixels(nothing, LabelConfig(kind=kind, classes=CLASSES)) is None for kind in by_kind
    )


def test_a_class_that_covers_too_little_is_no_label():
    part = np.repeat(np.array([0, 1, 2, 255], np.uint8), 25).reshape(10, 10)
    assert labelling.of_pixels(part, LabelConfig(classes=CLASSES)) is None
    assert labelling.of_pixels(part, LabelConfig(classes=CLASSES, min_share=0.25)) == 0


def test_what_the_set_says_of_a_scene_becomes_its_label():
    assert labelling.of_scene(("town",), LabelConfig(classes=CLASSES)) == 2
    assert labelling.of_scene(("town", "water"), LabelConfig(kind="classes", classes=CLASSES)) == (0, 2)
    assert labelling.of_scene((), LabelConfig(kind="classes", classes=CLASSES)) == ()
    assert labelling.check(scene("town"), LabelConfig(classes=CLASSES)).given.classes == ("town",)


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        (("Forest",), "class", r"class `Forest` is not in `labels.classes`.* `forest`"),
        (("water", "town"), "class", "2 classes as a whole"),
        (("water",), "mask", "labels.kind=classes"),
    ],
)
def test_classes_that_do_not_fit_the_settings_are_refused(given, kind, message):
    with pytest.raises(SceneError, match=message):
        labelling.check(scene(*given), LabelConfig(kind=kind, classes=CLASSES))
