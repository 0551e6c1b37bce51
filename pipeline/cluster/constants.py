"""Measured constants that plans are made from, each with its source; one table, so that a new figure is one line."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Constant:
    """A figure, its unit, and where it comes from."""

    value: float
    unit: str
    source: str


@dataclass(frozen=True)
class Device:
    """One training device."""

    flops: Constant  # dense matrix products in the precision that training uses
    bandwidth: Constant
    memory: Constant
    roofline_share: Constant  # what a training step reaches of the two above
    launch_seconds: Constant  # host time of one step that does not depend on its size
    usd_per_hour: Constant
    overlaps: bool = True  # memory traffic hides behind arithmetic; on a processor core one waits for the other


_DATASHEET = "maker's data sheet"
_FITTED = "training steps of hip_micro, hip_mini and hip_16 on a quiet Zen 4 core: within 13 %"
_EAGER = Constant(0.64, "of the roofline", "eager PyTorch: 75 % of matrix products, 85 % of bandwidth, unfused")
_CLOUD = "typical on-demand list price, 2026; give your own with plan.usd_per_device_hour"

DEVICES: dict[str, Device] = {
    "h200": Device(
        Constant(790e12, "FLOP/s", "bf16 matrix product measured on an H200"),
        Constant(4.3e12, "B/s", "copy measured on an H200"),
        Constant(139, "GiB", "usable memory of an H200"),
        _EAGER,
        Constant(8.5e-3, "s", "about 1,400 kernel launches a step, counted in a HiP-16 trace"),
        Constant(4.0, "USD/h", _CLOUD),
    ),
    "h100": Device(
        Constant(700e12, "FLOP/s", f"{_DATASHEET}, times the measured share of an H200"),
        Constant(2.9e12, "B/s", f"{_DATASHEET}, times the measured share of an H200"),
        Constant(78, "GiB", "usable memory of an H100"),
        _EAGER,
        Constant(8.5e-3, "s", "as h200"),
        Constant(3.0, "USD/h", _CLOUD),
    ),
    "a100": Device(
        Constant(250e12, "FLOP/s", f"{_DATASHEET}, times 0.8"),
        Constant(1.6e12, "B/s", f"{_DATASHEET}, times 0.8"),
        Constant(78, "GiB", "usable memory of an A100 80 GB"),
        _EAGER,
        Constant(10e-3, "s", "as h200, on an older host"),
        Constant(1.8, "USD/h", _CLOUD),
    ),
    "cpu_core": Device(
        Constant(95e9, "FLOP/s", _FITTED),
        Constant(10.5e9, "B/s", _FITTED),
        Constant(8, "GiB", "assumed share of a machine"),
        Constant(1.0, "of the roofline", _FITTED),
        Constant(2e-3, "s", "host time of a small eager step, assumed"),
        Constant(0.04, "USD/h", _CLOUD),
        overlaps=False,
    ),
}

TRAFFIC_PER_SAVED_BYTE = Constant(7.5, "B/B", "bytes moved by a step over bytes saved for backward: 7.0 to 8.5")
CUDA_CONTEXT_BYTES = Constant(1.0 * 2**30, "B", "CUDA context and libraries of one process, assumed")
PROCESS_BYTES = Constant(0.43 * 2**30, "B", "a training process without model and activations, measured")
RAY_BYTES = Constant(0.1 * 2**30, "B", "what Ray adds to a process, measured")
UPDATE_BYTES = Constant(8, "B a parameter", "temporary tensors of torch's AdamW, once activations are gone, measured")
MESSAGE_BYTES = Constant(4, "B a parameter", "DeepSpeed's buffer of gradients on their way, from its source")
SHARD_BYTES = Constant(512e6, "B", "default of hip preprocess")
DECODE_SECONDS = {
    256: Constant(1 / 9.0, "core-s a clip", "2.56 s clips of 256p H.264 to 8 frames of 224 and 48 kHz, measured"),
    720: Constant(1 / 6.9, "core-s a clip", "the same from 720p, measured"),
    1080: Constant(1 / 2.4, "core-s a clip", "the same from 1080p, measured"),
}
DECODED_CLIP_SECONDS = Constant(2.56, "s", "length of the clips that decoding was measured on")
READ_BYTES_PER_SECOND = {
    "local": Constant(0.87e9, "B/s", "cold random rows of a local disk, several threads, measured"),
    "object_store": Constant(0.25e9, "B/s", "a node's ranged reads of whole record batches, assumed; measure yours"),
    "page_cache": Constant(7.1e9, "B/s a core", "random rows from memory with checksums, measured"),
}
CPU_HOUR_USD = Constant(0.04, "USD/h", _CLOUD)
