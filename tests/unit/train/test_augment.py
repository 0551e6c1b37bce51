"""Augmentation and mixing: on the grid, not on the sequence, and a function of the example alone."""

import numpy as np
import pytest
import torch

from hip_model.modality import Modality
from hip_model.ordering import flatten, token_order, unflatten
from pipeline.errors import UserError
from pipeline.evaluate.mixing import MixOptions, box_tokens, mix
from pipeline.train.augment import augment, warn_of_idle_options
from pipeline.train.options import AugmentOptions

STRONG = AugmentOptions(crop_min_area=0.3, flip=0.5, rand_layers=3, rand_magnitude=8)
IDS, EPOCHS = torch.arange(6), torch.zeros(6, dtype=torch.int64)


def _tokens(modality, seed=0, count=6):
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (count, *modality.shape, modality.num_channels)).astype(np.uint8)
    order = token_order(modality.token_order, modality.shape)
    return images, torch.from_numpy(np.stack([flatten(image, order) for image in images]))


def test_nothing_is_changed_by_default():
    modality = Modality("image", 64, 3, (8, 8), "morton")
    _, tokens = _tokens(modality)
    found = augment({"image": tokens}, EPOCHS, IDS, {"image": modality}, AugmentOptions(), 0)
    assert found["image"] is tokens
    sound = Modality("audio", 50, 1, (50,))
    arrays = {"image": tokens, "audio": torch.zeros(6, 50, 1, dtype=torch.int16)}
    options = AugmentOptions(audio_shift=0.5)
    found = augment(arrays, EPOCHS, IDS, {"image": modality, "audio": sound}, options, 0)
    assert found["image"] is tokens, "what no option is on for is not even copied"


@pytest.mark.parametrize("order", ["raster", "morton", "hilbert", "shuffled"])
def test_a_flip_is_a_flip_of_the_picture_in_every_token_order(order):
    modality = Modality("image", 64, 3, (8, 8), order)
    images, tokens = _tokens(modality)
    found = augment({"image": tokens}, EPOCHS, IDS, {"image": modality}, AugmentOptions(flip=1.0), 0)["image"]
    for image, row in zip(images, found.numpy(), strict=True):
        flipped = unflatten(row, token_order(order, (8, 8)), (8, 8))
        np.testing.assert_array_equal(flipped, image[:, ::-1])


def test_frames_of_a_video_are_warped_alike():
    modality = Modality("video", 3 * 64, 3, (3, 8, 8))
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    tokens = torch.from_numpy(np.stack([image] * 3).reshape(1, 192, 3))
    found = augment({"video": tokens}, EPOCHS[:1], IDS[:1], {"video": modality}, STRONG, 0)["video"]
    frames = found.view(3, 64, 3)
    torch.testing.assert_close(frames[0], frames[2])
    assert not torch.equal(frames[0], tokens[0, :64])


def test_an_example_is_seen_alike_in_any_batch_and_otherwise_in_the_next_epoch():
    modality = Modality("image", 64, 3, (8, 8))
    _, tokens = _tokens(modality)
    whole = augment({"image": tokens}, EPOCHS, IDS, {"image": modality}, STRONG, 0)["image"]
    alone = augment({"image": tokens[3:4]}, EPOCHS[:1], IDS[3:4], {"image": modality}, STRONG, 0)["image"]
    torch.testing.assert_close(whole[3:4], alone)
    later = augment({"image": tokens[3:4]}, EPOCHS[:1] + 1, IDS[3:4], {"image": modality}, STRONG, 0)["image"]
    assert not torch.equal(alone, later)


def test_values_stay_in_the_range_of_pixels():
    modality = Modality("image", 64, 3, (8, 8))
    _, tokens = _tokens(modality)
    strong = AugmentOptions(rand_layers=6, rand_magnitude=10)
    for epoch in range(8):
        found = augment({"image": tokens}, EPOCHS + epoch, IDS, {"image": modality}, strong, 0)["image"]
        assert found.dtype == torch.uint8
        assert 20 < found.float().mean() < 235, "a value out of range would come round at the other end"


def test_sounds_are_shifted_in_a_circle_and_scaled():
    modality = Modality("audio", 50, 1, (50,))
    tokens = torch.arange(300, dtype=torch.int16).view(6, 50, 1)
    options = AugmentOptions(audio_shift=0.5)
    found = augment({"audio": tokens}, EPOCHS, IDS, {"audio": modality}, options, 0)["audio"]
    assert not torch.equal(found, tokens)
    torch.testing.assert_close(found.sort(1).values, tokens)
    louder = augment({"audio": tokens}, EPOCHS, IDS, {"audio": modality}, AugmentOptions(audio_gain_decibel=6), 0)[
        "audio"
    ]
    ratio = louder[1:, 10, 0] / tokens[1:, 10, 0]
    assert ((ratio > 0.49) & (ratio < 2.01)).all()
    assert ratio.std() > 0


def test_a_sound_that_becomes_too_loud_is_held_at_the_end_of_its_range():
    modality = Modality("audio", 50, 1, (50,))
    tokens = torch.full((6, 50, 1), 30000, dtype=torch.int16)
    found = augment({"audio": tokens}, EPOCHS, IDS, {"audio": modality}, AugmentOptions(audio_gain_decibel=12), 0)[
        "audio"
    ]
    assert (found.max(), found.dtype) == (32767, torch.int16)
    assert found.min() > 0


def test_both_channels_of_a_stereo_sound_are_shifted_and_scaled_alike():
    modality = Modality("audio", 50, 2, (50,))
    left = torch.arange(300, dtype=torch.int16).view(6, 50, 1)
    options = AugmentOptions(audio_shift=0.5, audio_gain_decibel=6)
    found = augment({"audio": torch.cat([left, 2 * left], 2)}, EPOCHS, IDS, {"audio": modality}, options, 0)["audio"]
    alone = augment({"audio": left}, EPOCHS, IDS, {"audio": Modality("audio", 50, 1, (50,))}, options, 0)["audio"]
    assert not torch.equal(alone, left)
    torch.testing.assert_close(found, torch.cat([alone, 2 * alone], 2), rtol=0, atol=1)


def test_options_for_signals_that_are_not_there_are_named(caplog):
    sound, picture = Modality("audio", 50, 2, (50,)), Modality("video", 128, 3, (2, 8, 8))
    options = AugmentOptions(flip=0.5, audio_shift=0.1, points_jitter=0.01, rand_magnitude=3)
    warn_of_idle_options(AugmentOptions(), [sound])
    assert not caplog.messages
    warn_of_idle_options(options, [sound, picture])
    assert [message.split("=")[0] for message in caplog.messages] == ["augment.points_jitter"]
    warn_of_idle_options(options, [sound])
    assert "augment.flip=0.5 (it acts on pictures) does nothing here: the model reads audio" in caplog.text


def test_points_are_scaled_and_jittered():
    modality = Modality("points", 20, 3, (20,))
    tokens = torch.randn(6, 20, 3)
    options = AugmentOptions(points_scale=0.2, points_jitter=0.01)
    found = augment({"points": tokens}, EPOCHS, IDS, {"points": modality}, options, 0)["points"]
    assert 0 < (found - tokens).abs().max() < 1.0


def test_mixup_is_the_stated_blend():
    inputs, targets = {"image": torch.randn(4, 64, 3)}, torch.eye(4)
    modality = {"image": Modality("image", 64, 3, (8, 8))}
    mixed, soft = mix(inputs, targets, modality, MixOptions(mixup=1.0), 0, 5)
    share = soft[0, 0]
    assert 0 < share < 1
    torch.testing.assert_close(soft.sum(1), torch.ones(4))
    torch.testing.assert_close(mixed["image"][0], share * inputs["image"][0] + (1 - share) * inputs["image"][3])


def test_cutmix_pastes_a_box_and_counts_it():
    modality = Modality("image", 64, 3, (8, 8), "hilbert")
    inputs = {"image": torch.stack([torch.full((64, 3), float(index)) for index in range(4)])}
    for step in range(5):
        mixed, soft = mix(inputs, torch.eye(4), {"image": modality}, MixOptions(cutmix=1.0), 0, step)
        foreign = (mixed["image"][0, :, 0] == 3.0).float().mean()
        assert soft[0, 3] == pytest.approx(float(foreign), abs=1e-6)


def test_a_box_covers_its_share_and_is_the_same_for_all_frames():
    video = Modality("video", 4 * 256, 3, (4, 16, 16))
    inside = box_tokens(video, 0.25, np.array([0.5, 0.5, 0.5])).reshape(4, 16, 16)
    assert inside.mean() == pytest.approx(0.25)
    assert (inside == inside[0]).all()


def test_mixing_nothing_leaves_the_batch_alone():
    inputs, targets = {"image": torch.randn(4, 64, 3)}, torch.eye(4)
    mixed, soft = mix(inputs, targets, {"image": Modality("image", 64, 3, (8, 8))}, MixOptions(), 0, 0)
    assert torch.equal(mixed["image"], inputs["image"])
    assert torch.equal(soft, targets)


def test_values_out_of_range_are_named():
    with pytest.raises(UserError, match=r"augment\.flip=2"):
        AugmentOptions(flip=2)
    with pytest.raises(UserError, match=r"mix\.mixup=-1"):
        MixOptions(mixup=-1)
