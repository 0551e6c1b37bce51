"""The paper's comparisons as data: which arms, at which scale, what the paper found, which orderings it claims.

Figures are top-1 accuracy on ImageNet or ModelNet40, or mean average precision on AudioSet, in per cent (HiP, arXiv
2202.10890 v1, tables 2 to 6). The paper states no optimizer, schedule or number of seeds: those of the scales are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pipeline.evaluate.derive import Derivation


@dataclass(frozen=True)
class Arm:
    """One line of a table."""

    name: str
    pretrained: bool  # by masked autoencoding on the same data; otherwise from scratch
    paper: float | None  # the paper's figure for it
    model: str = "main"  # which of the scale's models
    overrides: dict[str, Any] = field(default_factory=dict)  # of the model's configuration
    data: Derivation = field(default_factory=Derivation)
    modalities: tuple[str, ...] | None = None  # what is read of the data; none: all


@dataclass(frozen=True)
class Claim:
    """The paper says that ``better`` beats ``worse``."""

    better: str
    worse: str


@dataclass(frozen=True)
class StudyScale:
    """What runs where: models by name, and how long."""

    models: dict[str, tuple[str, dict[str, Any]]]
    batch: int
    pretrain_epochs: float
    finetune_epochs: float
    pretrain_rate: float  # peak learning rate for 256 examples
    finetune_rate: float
    says_not: str  # what this scale cannot show


@dataclass(frozen=True)
class Study:
    """A table of the paper."""

    title: str
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]
    scales: dict[str, StudyScale]
    needs: tuple[tuple[str, ...], ...] = ()  # modalities, of each group at least one, without which arms are the same


_SMALL_NOTE = (
    "Some thousand examples, a model of under two million parameters and one CPU core: orderings at best, and an "
    "ordering that depends on scale (that of learned tables, which need many updates per position) may not appear."
)
_FULL_NOTE = "Needs the paper's data and an accelerator cluster; not run by us."
_FULL = {"batch": 1024, "pretrain_epochs": 500.0, "finetune_epochs": 110.0, "pretrain_rate": 1.5e-4,
         "finetune_rate": 5e-4, "says_not": _FULL_NOTE}  # fmt: skip
_SMALL = {"batch": 64, "pretrain_epochs": 16.0, "finetune_epochs": 12.0, "pretrain_rate": 1.2e-2, "finetune_rate": 8e-3,
          "says_not": _SMALL_NOTE}  # fmt: skip


def _geometry(groups: tuple[int, ...]) -> dict[str, Any]:
    """Two groupings that differ in nothing else: five blocks, 256 latents in the first."""
    first = 256 // groups[0]
    return {
        "num_groups": groups,
        "num_latents": (first, 32, 16, 32, first),
        "num_channels": (32, 64, 96, 64, 32),
        "num_self_attention_layers": (1, 2, 1, 1, 1),
        "num_self_attention_heads": (2, 4, 4, 4, 2),
        "num_cross_attention_heads": (1,) * 5,
        "cross_attention_widening": (1,) * 5,
        "self_attention_widening": (4,) * 5,
    }


def _scales(
    small: dict[str, tuple[str, dict[str, Any]]], full: dict[str, tuple[str, dict[str, Any]]]
) -> dict[str, StudyScale]:
    return {"small": StudyScale(small, **_SMALL), "full": StudyScale(full, **_FULL)}  # type: ignore[arg-type]


_FOURIER = {"position": "fourier"}
_MAIN = _scales({"main": ("hip_nano", {})}, {"main": ("hip_16", {})})
_SHUFFLED = Derivation(order="shuffled")

STUDIES: dict[str, Study] = {
    "positions": Study(
        "Learned and Fourier positions, with and without masked autoencoding (ImageNet, HiP-16)",
        (
            Arm("learned + MAE", True, 81.0),
            Arm("learned", False, 70.1),
            Arm("Fourier + MAE", True, 78.7, overrides=_FOURIER),
            Arm("Fourier", False, 78.8, overrides=_FOURIER),
        ),
        (Claim("learned + MAE", "learned"), Claim("learned + MAE", "Fourier"), Claim("Fourier", "learned")),
        _MAIN,
    ),
    "pixel_shuffle": Study(
        "One fixed shuffle of all pixels (ImageNet, HiP-16)",
        (
            Arm("learned + MAE", True, 81.0),
            Arm("learned", False, 70.1),
            Arm("shuffled + MAE", True, 76.3, data=_SHUFFLED),
            Arm("shuffled", False, 68.8, data=_SHUFFLED),
        ),
        (
            Claim("shuffled + MAE", "shuffled"),
            Claim("learned + MAE", "shuffled + MAE"),
            Claim("shuffled + MAE", "learned"),
        ),
        _MAIN,
    ),
    "grouping": Study(
        "Few or many groups (ImageNet, HiP-16 and HiP-256)",
        (
            Arm("few groups + MAE", True, 81.0, "few"),
            Arm("many groups + MAE", True, 79.9, "many"),
            Arm("few groups", False, 70.1, "few"),
            Arm("many groups", False, 68.1, "many"),
        ),
        (Claim("few groups + MAE", "many groups + MAE"), Claim("few groups", "many groups")),
        _scales(
            {"few": ("hip_micro", _geometry((4, 1, 1, 1, 4))), "many": ("hip_micro", _geometry((32, 1, 1, 1, 32)))},
            {"few": ("hip_16", {}), "many": ("hip_256", {})},
        ),
    ),
    "perceiver_io": Study(
        "HiP against Perceiver IO (ImageNet)",
        (
            Arm("HiP, learned + MAE", True, 81.0),
            Arm("Perceiver IO, Fourier", False, 79.0, "perceiver_io", _FOURIER),
            Arm("Perceiver IO, learned", False, 72.7, "perceiver_io"),
        ),
        (
            Claim("HiP, learned + MAE", "Perceiver IO, Fourier"),
            Claim("Perceiver IO, Fourier", "Perceiver IO, learned"),
        ),
        _scales(
            {"main": ("hip_nano", {}), "perceiver_io": ("io_mini", {})},
            {"main": ("hip_16", {}), "perceiver_io": ("perceiver_io_imagenet", {})},
        ),
    ),
    "modalities": Study(
        "Sound alone, and sound with pictures (AudioSet, HiP-256)",
        (
            Arm("A+V + MAE", True, 43.1),
            Arm("A + MAE", True, 41.3, modalities=("audio",)),
        ),
        (Claim("A+V + MAE", "A + MAE"),),
        _scales({"main": ("hip_nano", {})}, {"main": ("hip_256", {})}),
        needs=(("audio",), ("video", "image")),
    ),
    "modelnet": Study(
        "Point clouds in file order and shuffled (ModelNet40, HiP-16)",
        (
            Arm("MAE", True, 80.6),
            Arm("scratch", False, 75.9),
            Arm("shuffled points + MAE", True, None, data=Derivation(shuffle_points=True)),
            Arm("shuffled points", False, None, data=Derivation(shuffle_points=True)),
        ),
        (Claim("MAE", "scratch"),),
        _MAIN,
        needs=(("points",),),
    ),
}
