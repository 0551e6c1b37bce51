"""What ``hip doctor`` looks at, and what it found."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.errors import UserError, nearest
from pipeline.ray_session import RayOptions
from pipeline.tracking.options import TrackingOptions

OK, WARN, FAIL = "ok", "warn", "fail"


@dataclass(frozen=True)
class DoctorOptions:
    """``hip doctor``: this machine, or with ``ray.address`` every node of a cluster."""

    storage: str | None = "hip-runs"  # where runs live; null: not looked at
    shards: str | None = None  # a dataset that every node must be able to read; null: not looked at
    format: str = "text"  # text | json
    timeout_seconds: float = 60.0  # for each node, and for each server
    ray: RayOptions = field(default_factory=RayOptions)
    tracking: TrackingOptions = field(default_factory=TrackingOptions)

    def __post_init__(self) -> None:
        if self.format not in ("text", "json"):
            raise UserError(f"format={self.format}: {nearest(self.format, ('text', 'json'))}")
        if self.timeout_seconds <= 0:
            raise UserError(f"timeout_seconds={self.timeout_seconds} must be above 0")


@dataclass(frozen=True)
class Finding:
    """One thing looked at. ``level``: ok, warn (works, but expect trouble) or fail; ``fix``: what to do about it."""

    check: str
    level: str
    what: str
    fix: str = ""
    node: str = ""  # the machine; empty: the cluster as a whole
