"""How examples reach a training process."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.errors import UserError, nearest
from pipeline.shards.remote import CacheOptions

INGEST_ORDERS = ("global", "blocks")


@dataclass(frozen=True)
class IngestOptions:
    """Order, prefetching and the cache of remote shards."""

    order: str = "global"
    """global: any example next; blocks: record batches mixed in a window, for object stores and slow disks."""
    window_blocks: int = 64
    """Record batches (about 24 MB each) that are mixed at a time in order=blocks; part of the order."""
    prefetch_batches: int = 2
    """Batches made ahead; memory is (prefetch_batches + 1) times the bytes of a worker's batch."""
    threads: int = 2
    """Threads of one worker that read and check examples."""
    fetch_threads: int = 4
    """Threads of one worker that fetch record batches of remote shards before they are needed, a window ahead."""
    cache: CacheOptions = field(default_factory=CacheOptions)
    """Where record batches of remote shards are kept on this machine."""

    def __post_init__(self) -> None:
        if self.order not in INGEST_ORDERS:
            raise UserError(f"ingest.order={self.order!r} is unknown; {nearest(self.order, INGEST_ORDERS)}")
        for key, value in (
            ("window_blocks", self.window_blocks),
            ("prefetch_batches", self.prefetch_batches),
            ("threads", self.threads),
            ("fetch_threads", self.fetch_threads),
        ):
            if value < 1:
                raise UserError(f"ingest.{key}={value} must be 1 or more")
