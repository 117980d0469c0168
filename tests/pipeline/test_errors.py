import inspect

import pytest

from pipeline import errors
from pipeline.errors import PipelineError

CLASSES = [c for _, c in inspect.getmembers(errors, inspect.isclass) if issubclass(c, PipelineError)]


@pytest.mark.parametrize("kind", [c for c in CLASSES if c not in (PipelineError, errors.RejectedError)])
def test_every_error_is_also_the_builtin_a_caller_would_expect(kind):
    builtin = [
        base
        for base in kind.__mro__
        if base.__module__ == "builtins" and base not in (Exception, BaseException, object)
    ]
    assert builtin, kind
    with pytest.raises(builtin[0], match="what"):
        raise kind("what")


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_says_its_message_plainly_and_has_an_exit_code(kind):
    assert str(kind("what, where")) == "what, where"
    assert kind.exit_code in (1, 2, 3)


@pytest.mark.parametrize(
    ("name", "known", "said"),
    [
        ("b08", ["B02", "B08"], " Did you mean `B08`?"),
        ("NVDI", ["NDVI", "NBR"], " Did you mean `NDVI`?"),
        ("zzz", ["B02", "B08"], " Known: B02, B08."),
        ("zzz", [], ""),
    ],
)
def test_suggestions(name, known, said):
    assert errors.did_you_mean(name, known) == said


def test_an_unknown_name_says_kind_place_and_suggestion():
    error = errors.unknown("band", "B80", ["B08", "B02"], "sensor sentinel2")
    assert str(error) == "unknown band `B80` in sensor sentinel2. Did you mean `B08`?"
    assert isinstance(error, KeyError)
