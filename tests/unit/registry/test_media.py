from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.preprocess.limits import MediaError
from pipeline.preprocess.recipe import ImageRecipe, TokenRecipe
from pipeline.registry.media import MEDIA_ROOT, decode_item

RECIPE = TokenRecipe(image=ImageRecipe(8, 8))
SERVING = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 77, dtype=np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "media" / "picture.png"
    path.parent.mkdir()
    path.write_bytes(_png())
    return path


@pytest.mark.parametrize("form", ["bytes", "base64", "data", "path", "uri"])
def test_every_way_to_give_media_gives_the_same_tokens(form: str, picture: Path) -> None:
    text = base64.b64encode(_png()).decode()
    item: object = {
        "bytes": _png(),
        "base64": text,
        "data": f"data:image/png;base64,{text}",
        "path": str(picture),
        "uri": f"file://{picture}",
    }[form]
    [example] = decode_item(item, RECIPE)
    assert example.arrays["image"] is not None
    np.testing.assert_array_equal(example.arrays["image"], np.full((64, 3), 77, dtype=np.uint8))


@pytest.mark.parametrize("item", ["no such file", 3.5, None, b"", b"\x00garbage", base64.b64encode(b"words").decode()])
def test_what_is_not_media_is_named(item: object) -> None:
    with pytest.raises(MediaError):
        list(decode_item(item, RECIPE))


def test_a_server_reads_no_paths(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SERVING, "true")
    with pytest.raises(MediaError, match="neither an existing file nor base64"):
        list(decode_item(str(picture), RECIPE))
    with pytest.raises(MediaError, match="does not fetch URIs"):
        list(decode_item("http://169.254.169.254/latest/meta-data", RECIPE))
    assert len(list(decode_item(_png(), RECIPE))) == 1


def test_paths_are_read_below_the_media_root_only(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SERVING, "true")
    monkeypatch.setenv(MEDIA_ROOT, str(picture.parent))
    assert len(list(decode_item(str(picture), RECIPE))) == 1
    outside = picture.parent.parent / "secret.png"
    outside.write_bytes(_png())
    link = picture.parent / "link.png"
    link.symlink_to(outside)
    for path in (outside, link, picture.parent / ".." / "secret.png"):
        with pytest.raises(MediaError, match=MEDIA_ROOT):
            list(decode_item(str(path), RECIPE))
