"""The token recipe: which modalities an example has and how they are sampled from a file."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from hip_model.ordering import TOKEN_ORDERS
from pipeline.errors import UserError, nearest
from pipeline.shards.schema import ModalitySpec

FITS = ("crop", "stretch", "pad")
_GRID_ORDERS = tuple(name for name in TOKEN_ORDERS if name != "kd")


@dataclass(frozen=True)
class VideoRecipe:
    """``frames`` pictures spread evenly over a clip, each resized to ``height`` x ``width``."""

    frames: int
    height: int
    width: int
    fit: str = "crop"
    """crop = centre crop to the target's aspect ratio, then resize; stretch; pad = whole picture on black."""

    def __post_init__(self) -> None:
        _require_positive("tokens.video", frames=self.frames, height=self.height, width=self.width)
        _require_choice("tokens.video.fit", self.fit, FITS)


@dataclass(frozen=True)
class AudioRecipe:
    """Sound resampled to ``sample_rate`` hertz and mixed to ``channels`` (1 mono, 2 stereo), 16-bit."""

    sample_rate: int
    channels: int = 1

    def __post_init__(self) -> None:
        _require_positive("tokens.audio", sample_rate=self.sample_rate)
        _require_choice("tokens.audio.channels", self.channels, (1, 2))


@dataclass(frozen=True)
class ImageRecipe:
    """A picture resized to ``height`` x ``width``; ``fit`` as for video."""

    height: int
    width: int
    fit: str = "crop"

    def __post_init__(self) -> None:
        _require_positive("tokens.image", height=self.height, width=self.width)
        _require_choice("tokens.image.fit", self.fit, FITS)


@dataclass(frozen=True)
class PointsRecipe:
    """``num_points`` points of a cloud, a surface or a voxel grid."""

    num_points: int
    scale: str = "unit_sphere"
    """unit_sphere = centred and scaled to radius 1; none = the file's own coordinates."""
    token_order: str = "kd"

    def __post_init__(self) -> None:
        _require_positive("tokens.points", num_points=self.num_points)
        _require_choice("tokens.points.scale", self.scale, ("unit_sphere", "none"))
        _require_choice("tokens.points.token_order", self.token_order, ("kd", "raster", "shuffled"))


@dataclass(frozen=True)
class TokenRecipe:
    """How a file becomes examples of raw tokens. A modality that is null does not exist in the dataset."""

    clip_seconds: float = 1.0
    """Length of one clip."""
    stride_seconds: float | None = None
    """Seconds between the starts of two clips; null = clip_seconds (no overlap, no gap)."""
    token_order: str = "raster"
    """How frames, pictures and sound are flattened."""
    minimum_coverage: float = 0.9
    """A signal that covers less of a clip is recorded as missing there; what is short of a whole clip is padded with
    the last frame and with silence."""
    video: VideoRecipe | None = None
    audio: AudioRecipe | None = None
    image: ImageRecipe | None = None
    points: PointsRecipe | None = None

    def __post_init__(self) -> None:
        _require_positive("tokens", clip_seconds=self.clip_seconds, stride_seconds=self.stride)
        _require_choice("tokens.token_order", self.token_order, _GRID_ORDERS)
        if not 0 < self.minimum_coverage <= 1:
            raise UserError(f"tokens.minimum_coverage={self.minimum_coverage} must be above 0 and at most 1")
        if self.audio and self.samples_per_clip < 1:
            raise UserError(f"tokens.clip_seconds={self.clip_seconds} holds no sample at {self.audio.sample_rate} Hz")
        if not self.specs():
            raise UserError("tokens names no modality; give at least one of video, audio, image, points")

    @property
    def stride(self) -> float:
        """Seconds between the starts of two clips."""
        return self.clip_seconds if self.stride_seconds is None else self.stride_seconds

    @property
    def samples_per_clip(self) -> int:
        """Audio samples of one clip, 0 without audio."""
        return round(self.clip_seconds * self.audio.sample_rate) if self.audio else 0

    def specs(self) -> list[ModalitySpec]:
        """The modalities of a row, in the order video, audio, image, points."""
        return [spec for spec in (self._video(), self._audio(), self._image(), self._points()) if spec is not None]

    def fingerprint(self) -> str:
        """Short hash that changes whenever the tokens of a file would."""
        text = json.dumps(self.to_dict(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a manifest or a model's metadata."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TokenRecipe:
        """The inverse of :meth:`to_dict`."""
        kinds = {"video": VideoRecipe, "audio": AudioRecipe, "image": ImageRecipe, "points": PointsRecipe}
        parts = {name: kind(**values[name]) for name, kind in kinds.items() if values.get(name)}
        return cls(**{**values, **parts})

    def _video(self) -> ModalitySpec | None:
        video = self.video
        if video is None:
            return None
        sampling = {"clip_seconds": self.clip_seconds, "fit": video.fit, "colour": "rgb"}
        shape = (video.frames, video.height, video.width)
        return ModalitySpec("video", shape, 3, "uint8", self.token_order, sampling)

    def _audio(self) -> ModalitySpec | None:
        audio = self.audio
        if audio is None:
            return None
        sampling = {"clip_seconds": self.clip_seconds, "sample_rate": audio.sample_rate}
        return ModalitySpec("audio", (self.samples_per_clip,), audio.channels, "int16", self.token_order, sampling)

    def _image(self) -> ModalitySpec | None:
        image = self.image
        if image is None:
            return None
        sampling = {"fit": image.fit, "colour": "rgb"}
        return ModalitySpec("image", (image.height, image.width), 3, "uint8", self.token_order, sampling)

    def _points(self) -> ModalitySpec | None:
        points = self.points
        if points is None:
            return None
        return ModalitySpec("points", (points.num_points,), 3, "float32", points.token_order, {"scale": points.scale})


def _require_positive(prefix: str, **values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise UserError(f"{prefix}.{name}={value} must be above 0 and finite")


def _require_choice(key: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise UserError(f"{key}={value!r} is not known; {nearest(value, choices)}")
