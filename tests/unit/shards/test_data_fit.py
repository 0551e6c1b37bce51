"""Promise 6: other data is refused with the difference by name."""

import json

import pytest

from pipeline.errors import UserError
from pipeline.shards.data_fit import absent_modalities, check_fit, differences
from pipeline.shards.schema import ModalitySpec

IMAGE = ModalitySpec("image", (8, 8), 3, "uint8", sampling={"height": 8, "fit": "crop"})
AUDIO = ModalitySpec("audio", (64,), 1, "int16", sampling={"sample_rate": 16000})


def test_same_specs_fit_also_after_a_json_round_trip():
    through_json = json.loads(json.dumps([IMAGE.to_dict(), AUDIO.to_dict()]))
    assert differences(through_json, [AUDIO.to_dict(), IMAGE.to_dict()]) == []


def test_extra_modalities_of_the_data_are_ignored():
    assert differences([IMAGE.to_dict()], [IMAGE.to_dict(), AUDIO.to_dict()]) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"shape": (4, 16)}, r"image\.shape: the model was trained on \[8, 8\], the data has \[4, 16\]"),
        ({"num_channels": 1}, r"image\.num_channels"),
        ({"dtype": "float32"}, r"image\.dtype"),
        ({"token_order": "morton"}, r"image\.token_order: the model was trained on raster, the data has morton"),
        ({"sampling": {"height": 8, "fit": "squash"}}, r"image\.sampling"),
    ],
)
def test_each_difference_is_named(change, named):
    given = ModalitySpec(**({"name": "image", "shape": (8, 8), "num_channels": 3, "dtype": "uint8",
                             "sampling": {"height": 8, "fit": "crop"}} | change))  # fmt: skip
    with pytest.raises(UserError, match=named):
        check_fit([IMAGE.to_dict()], [given.to_dict()], "/data")


def test_a_missing_modality_is_named_with_what_is_there():
    with pytest.raises(UserError, match="the model reads 'audio', the data has image"):
        check_fit([IMAGE.to_dict(), AUDIO.to_dict()], [IMAGE.to_dict()], "/data")


def test_what_is_said_to_be_absent_comes_from_the_model():
    model = [IMAGE.to_dict(), AUDIO.to_dict()]
    assert absent_modalities(model, [IMAGE.to_dict()], ["audio", "audio"]) == (AUDIO,)
    assert absent_modalities(model, [IMAGE.to_dict()], []) == ()


@pytest.mark.parametrize(
    ("absent", "says"),
    [
        (["audoi"], r"absent: the model has no modality 'audoi'; did you mean 'audio'\?"),
        (["image"], "absent: the data do have 'image'"),
    ],
)
def test_nothing_else_can_be_absent(absent, says):
    with pytest.raises(UserError, match=says):
        absent_modalities([IMAGE.to_dict(), AUDIO.to_dict()], [IMAGE.to_dict()], absent)


def test_something_has_to_be_left():
    with pytest.raises(UserError, match="leaves the model nothing to read"):
        absent_modalities([IMAGE.to_dict(), AUDIO.to_dict()], [], ["image", "audio"])
