"""Baselines of timm: refused with the way out where it is missing, and the same harness where it is there."""

import pytest
import torch

from hip_model.modality import Modality
from pipeline.errors import UserError
from pipeline.evaluate.baseline import build_baseline, is_baseline, open_baseline, save_baseline

PICTURE = Modality("image", 1024, 3, (32, 32))


def test_a_baseline_needs_one_picture_an_example():
    with pytest.raises(UserError, match="one picture"):
        build_baseline("timm/resnet18", [PICTURE, Modality("audio", 64, 1, (64,))], {})


def test_without_timm_the_error_says_what_to_install():
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError):
        with pytest.raises(UserError, match="needs timm"):
            build_baseline("timm/resnet18", [PICTURE], {})
    else:
        with pytest.raises(UserError, match="no such model"):
            build_baseline("timm/resnet1x", [PICTURE], {})


def test_a_saved_baseline_gives_the_same_features(tmp_path):
    try:
        import timm  # noqa: F401
    except (ImportError, RuntimeError):
        pytest.skip("timm is not installed")
    model = build_baseline("timm/resnet18", [PICTURE], {}).eval()
    inputs = {"image": torch.randn(2, 1024, 3)}
    save_baseline(model, tmp_path, {})
    assert is_baseline(tmp_path)
    torch.testing.assert_close(open_baseline(tmp_path).encode(inputs)[0], model.encode(inputs)[0])
    assert model.encode(inputs)[0].shape == (2, 1, 1, 512)
