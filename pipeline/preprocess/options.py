"""What ``hip preprocess`` can be told."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.errors import UserError, nearest
from pipeline.preprocess.limits import LimitsOptions
from pipeline.preprocess.recipe import TokenRecipe
from pipeline.ray_session import RayOptions

SOURCE_KINDS = ("auto", "folder", "classes", "list", "table", "audioset", "kinetics", "modelnet")


@dataclass(frozen=True)
class ScaleOptions:
    """How many files are decoded at once."""

    workers: int | None = None
    """Decoding processes, one CPU each; null = every CPU of the cluster."""

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise UserError(f"scale.workers={self.workers} must be at least 1, or null for every CPU")


@dataclass(frozen=True)
class PreprocessOptions:
    """Media in, token shards out."""

    source: str
    """Folder, list file (.txt) or table (.csv, .parquet) of media; a path or a URI."""
    shards: str
    """Folder of the dataset; a path or a URI."""
    tokens: TokenRecipe
    """Modalities and how they are sampled."""
    source_kind: str = "auto"
    """How to read the source; auto recognises each of the others."""
    media_root: str | None = None
    """Where the files that a list or table names lie; null = beside it."""
    validation_fraction: float = 0.1
    """Share of the source files, by a hash of their content, that goes to the validation split."""
    max_failed_fraction: float = 0.05
    """Stop once more than this share of the files has failed."""
    retry_failed: bool = False
    """Decode again the files that failed in an earlier run."""
    shard_megabytes: float = 512.0
    """Size of a shard; a small dataset gets at least about eight shards."""
    progress_seconds: float = 10.0
    """Seconds between two lines of progress."""
    limits: LimitsOptions = field(default_factory=LimitsOptions)
    """What one file may cost."""
    scale: ScaleOptions = field(default_factory=ScaleOptions)
    """How much runs at once."""
    ray: RayOptions = field(default_factory=RayOptions)
    """Which Ray cluster."""

    def __post_init__(self) -> None:
        if self.source_kind not in SOURCE_KINDS:
            raise UserError(f"source_kind={self.source_kind!r} is not known; {nearest(self.source_kind, SOURCE_KINDS)}")
        for key in ("validation_fraction", "max_failed_fraction"):
            value = getattr(self, key)
            if not 0 <= value <= 1:
                raise UserError(f"{key}={value} must lie between 0 and 1")
        if not self.shard_megabytes > 0 or not self.progress_seconds > 0:
            raise UserError("shard_megabytes and progress_seconds must be above 0")
        for key in ("source", "shards"):
            if not str(getattr(self, key)).strip():
                raise UserError(f"{key} is empty; give a path or a URI, like {key}=/data/{key}")
