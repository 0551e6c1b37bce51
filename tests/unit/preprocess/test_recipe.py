"""The recipe: the paper's numbers, round trip, and errors that say what to do."""

from __future__ import annotations

import pytest

from pipeline.errors import UserError
from pipeline.preprocess.recipe import AudioRecipe, ImageRecipe, PointsRecipe, TokenRecipe, VideoRecipe

PAPER = TokenRecipe(clip_seconds=2.56, video=VideoRecipe(8, 224, 224), audio=AudioRecipe(48_000))


def test_the_papers_audioset_setting() -> None:
    video, audio = PAPER.specs()
    assert (video.num_tokens, video.num_channels, video.dtype) == (401_408, 3, "uint8")
    assert (audio.num_tokens, audio.num_channels, audio.dtype) == (122_880, 1, "int16")
    assert video.row_bytes + audio.row_bytes == 1_449_984


@pytest.mark.parametrize(
    "recipe",
    [PAPER, TokenRecipe(image=ImageRecipe(32, 32, "pad")), TokenRecipe(points=PointsRecipe(64), token_order="hilbert")],
)
def test_round_trip(recipe: TokenRecipe) -> None:
    again = TokenRecipe.from_dict(recipe.to_dict())
    assert again == recipe
    assert again.fingerprint() == recipe.fingerprint()


def test_every_setting_changes_the_fingerprint() -> None:
    others = [
        TokenRecipe(clip_seconds=2.0, video=VideoRecipe(8, 224, 224), audio=AudioRecipe(48_000)),
        TokenRecipe(clip_seconds=2.56, video=VideoRecipe(8, 224, 224, "pad"), audio=AudioRecipe(48_000)),
        TokenRecipe(clip_seconds=2.56, video=VideoRecipe(8, 224, 224)),
        TokenRecipe(clip_seconds=2.56, token_order="morton", video=VideoRecipe(8, 224, 224), audio=AudioRecipe(48_000)),
    ]
    assert len({recipe.fingerprint() for recipe in [PAPER, *others]}) == 5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TokenRecipe(), "names no modality"),
        (lambda: TokenRecipe(clip_seconds=0, image=ImageRecipe(8, 8)), "clip_seconds=0"),
        (lambda: TokenRecipe(stride_seconds=-1.0, image=ImageRecipe(8, 8)), "stride_seconds=-1"),
        (lambda: TokenRecipe(token_order="mortan", image=ImageRecipe(8, 8)), "did you mean 'morton'"),
        (lambda: VideoRecipe(8, 224, 224, "corp"), "did you mean 'crop'"),
        (lambda: VideoRecipe(0, 224, 224), "frames=0"),
        (lambda: AudioRecipe(8000, 3), "channels=3"),
        (lambda: PointsRecipe(10, "sphere"), "unit_sphere"),
        (lambda: TokenRecipe(minimum_coverage=0.0, audio=AudioRecipe(8000)), "minimum_coverage"),
        (lambda: TokenRecipe(clip_seconds=0.00001, audio=AudioRecipe(8000)), "holds no sample"),
    ],
)
def test_mistakes_are_named(make: object, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()  # type: ignore[operator]
