import io
import json
from dataclasses import replace

import numpy as np
import pytest
from numcodecs import Blosc

from pipeline import sample as samples
from pipeline.errors import CorruptDataError
from pipeline.sample import NODATA, Sample


def make(label: int | None = 3) -> Sample:
    rng = np.random.default_rng(0)
    pixels = np.cumsum(rng.integers(-20, 21, (12, 96, 96)), axis=2).astype(np.int16)
    pixels[:, :8] = NODATA
    mask = (pixels[0] == NODATA).astype(np.uint8)
    return Sample(
        "scene_00000_00096", pixels, mask, rng.random((3, 12, 12, 3), np.float32), {"row": 0, "Ä": "ü"}, label
    )


def same(a: Sample, b: Sample) -> bool:
    arrays = all(np.array_equal(getattr(a, n), getattr(b, n)) for n in ("pixels", "mask", "cells"))
    return arrays and (a.key, a.info, a.label) == (b.key, b.info, b.label)


@pytest.mark.parametrize("codec", samples.CODECS)
@pytest.mark.parametrize("label", [None, 0, 7])
def test_what_is_encoded_is_decoded(codec, label):
    one = make(label)
    assert same(samples.decode(one.key, samples.encode(one, codec), "here"), one)


def test_members_are_those_of_the_format():
    assert sorted(samples.encode(make())) == [
        "cells.npy.blosc",
        "json",
        "label.cls",
        "mask.npy.blosc",
        "pixels.npy.blosc",
    ]
    assert "label.cls" not in samples.encode(make(None))


def test_a_stranger_decodes_with_numcodecs_and_numpy():
    members = samples.encode(make())
    pixels = np.load(io.BytesIO(Blosc().decode(members["pixels.npy.blosc"])))
    np.testing.assert_array_equal(pixels, make().pixels)
    assert json.loads(members["json"])["Ä"] == "ü"
    assert members["label.cls"] == b"3"


def test_the_filters_work_on_whole_elements():
    pixels = make().pixels
    assert len(samples.encode_array(pixels, "zstd")) < 0.75 * pixels.nbytes
    assert len(samples.encode_array(pixels, "lz4")) < 0.85 * pixels.nbytes
    # bits shuffled do not help it; that bytes are is what makes it fast to read
    assert len(samples.encode_array(pixels, "lz4hc")) <= len(samples.encode_array(pixels, "lz4"))


@pytest.mark.parametrize("codec", samples.CODECS)
def test_equal_samples_are_equal_bytes_for_any_number_of_threads(codec):
    noise = np.random.default_rng(0).integers(0, 9000, (12, 128, 128)).astype(np.int16)
    assert len({samples.encode_array(noise, codec) for _ in range(30)}) == 1


def test_views_are_encoded_as_what_they_show():
    pixels = np.arange(4 * 32 * 32, dtype=np.int16).reshape(4, 32, 32)
    view = pixels[::2, ::-1, 8:24]
    np.testing.assert_array_equal(samples.decode_array(samples.encode_array(view)), view)


def damaged(name: str, data: bytes | None) -> dict[str, bytes]:
    members = samples.encode(make()) | ({} if data is None else {name: data})
    if data is None:
        del members[name]
    return members


@pytest.mark.parametrize("name", ["pixels.npy.blosc", "mask.npy.blosc", "cells.npy.blosc", "json"])
def test_t17_a_missing_member_is_named_with_shard_and_key(name):
    with pytest.raises(CorruptDataError, match=f"shard-1: sample scene_00000_00096 has no member `{name}`"):
        samples.decode(make().key, damaged(name, None), "shard-1")


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("pixels.npy.blosc", b""),
        ("pixels.npy.blosc", samples.encode(make())["pixels.npy.blosc"][:500]),
        ("pixels.npy.blosc", np.random.default_rng(0).bytes(64)),
        ("pixels.npy.blosc", samples.encode_array(np.zeros((12, 96, 96), np.int32))),
        ("pixels.npy.blosc", samples.encode_array(np.zeros((12, 48, 96), np.int16))),
        ("mask.npy.blosc", samples.encode_array(np.zeros((1, 96, 96), np.uint8))),
        ("cells.npy.blosc", samples.encode_array(np.full((3, 12, 12, 3), np.nan, np.float32))),
        ("json", b"{"),
        ("json", b"\xff"),
        ("label.cls", b"forest"),
    ],
)
def test_t17_damaged_members_are_told_with_shard_and_key(name, data):
    with pytest.raises(CorruptDataError, match=r"shard-1.*scene_00000_00096"):
        samples.decode(make().key, damaged(name, data), "shard-1")


def test_objects_in_arrays_are_never_unpickled():
    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], object), allow_pickle=True)
    data = Blosc().encode(buffer.getvalue())
    with pytest.raises(CorruptDataError, match="cannot be decoded"):
        samples.decode(make().key, damaged("pixels.npy.blosc", data), "shard-1")


@pytest.mark.parametrize("kind", ["classes", "mask"])
def test_other_kinds_of_label_and_a_second_date_come_back_as_they_were(kind):
    one = make(None)
    label = (0, 2, 11) if kind == "classes" else (np.arange(96 * 96) % 5).reshape(96, 96).astype(np.uint8)
    one = replace(one, label=label, after=one.pixels[:, ::-1])
    members = samples.encode(one)
    assert {"label.json"} & set(members) or "label.npy.blosc" in members
    back = samples.decode("k", members, "shard")
    assert type(back.label) is type(label) and np.array_equal(back.label, label)
    assert np.array_equal(back.after, one.after) and np.array_equal(back.pixels, one.pixels)


@pytest.mark.parametrize("name", ["label.npy.blosc", "after.npy.blosc"])
def test_t17_a_label_or_date_of_other_shape_is_misshapen(name):
    members = samples.encode(make(None)) | {name: samples.encode_array(np.zeros((3, 8, 8), np.uint8))}
    with pytest.raises(CorruptDataError, match="misshapen"):
        samples.decode("k", members, "shard")


def test_t17_a_label_that_is_no_list_is_told():
    members = samples.encode(make(None)) | {"label.json": b"7"}
    with pytest.raises(CorruptDataError, match=r"(json|label) of"):
        samples.decode("k", members, "shard")


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
def test_an_array_is_stored_as_the_npy_that_numpy_writes(dtype):
    array, plain = np.arange(24).astype(dtype).reshape(2, 3, 4), io.BytesIO()
    np.save(plain, array)
    assert Blosc().decode(samples.encode_array(array)) == plain.getvalue()
    assert samples.encode_array(array[:, ::2]) == samples.encode_array(np.ascontiguousarray(array[:, ::2]))


@pytest.mark.parametrize(
    ("old", "new"), [(b"}", b"m"), (b"{", b"z"), (b"'descr'", b"' escr'"), (b"(", b"\n")]
)
def test_t17_a_flipped_bit_in_what_says_shape_and_type_is_told(old, new):
    plain = io.BytesIO()
    np.save(plain, np.zeros((12, 12), np.uint8))
    altered = Blosc("lz4").encode(plain.getvalue().replace(old, new, 1))
    with pytest.raises(CorruptDataError, match=r"shard-1: .*\.mask\.npy\.blosc cannot be decoded"):
        samples.decode(make().key, damaged("mask.npy.blosc", bytes(altered)), "shard-1")
