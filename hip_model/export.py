"""Models as files: weights in safetensors, and in JSON what it takes to build them again.

A folder holds ``model.safetensors`` (with a checksum per tensor in its header) and ``config.json``. The weights are
written first and each file is renamed into place, so a folder with a ``config.json`` is complete.

Graphs for other runtimes are in hip_model.graphs.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from hip_model.class_bottleneck import ClassBottleneckHiP
from hip_model.config import HiPConfig, PerceiverIOConfig
from hip_model.errors import ConfigError, InputError
from hip_model.hip import HiP
from hip_model.modality import Modality
from hip_model.perceiver import Perceiver, PerceiverConfig
from hip_model.perceiver_io import PerceiverIO
from hip_model.remote import local_folder
from hip_model.variants import available_models, model_config

FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

_ARCHITECTURES: dict[str, tuple[Any, Any]] = {
    "hip": (HiP, HiPConfig),
    "class_bottleneck_hip": (ClassBottleneckHiP, HiPConfig),
    "perceiver_io": (PerceiverIO, PerceiverIOConfig),
    "perceiver": (Perceiver, PerceiverConfig),
}


def save_pretrained(
    model: Any, folder: str | Path, metadata: Mapping[str, Any], state: Mapping[str, Tensor] | None = None
) -> None:
    """Write a model of this package to a local folder, which is made if need be; other files there are left alone.

    ``metadata`` is any JSON (the pipeline keeps its data card under ``data``). ``state`` replaces the model's own
    weights, for sharded training that has gathered them elsewhere.

    Raises:
        InputError: not a model of this package, metadata that is no JSON, or a state that does not fit the model.
    """
    architecture = _architecture_of(model)
    weights = dict(model.state_dict() if state is None else state)
    _check_fit({name: tuple(value.shape) for name, value in weights.items()}, model, "the given state")
    card = {
        "format_version": FORMAT_VERSION,
        "architecture": architecture,
        "name": _variant_name(model.config),
        "config": model.config.to_dict(),
        "modalities": [asdict(modality) for modality in model.modalities],
        "metadata": dict(metadata),
    }
    if isinstance(model, ClassBottleneckHiP):
        card["labels"] = [asdict(label) for label in model.labels]
    try:
        text = json.dumps(card, indent=2, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"the metadata of a saved model must be plain JSON: {error}") from error
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # A config without its weights must not look complete, whatever an interrupted overwrite leaves.
    (folder / CONFIG_FILE).unlink(missing_ok=True)
    _replace(folder / WEIGHTS_FILE, lambda path: _write_weights(weights, path))
    _replace(folder / CONFIG_FILE, lambda path: path.write_text(text + "\n", encoding="utf-8"))


def from_pretrained(folder: str | Path, device: str | torch.device = "cpu") -> Any:
    """The model in a folder or URI (``file://``, ``s3://``, ``gs://``, any fsspec scheme), in evaluation mode.

    Raises:
        InputError: missing, truncated or corrupt files, weights that do not fit the config, an unknown architecture or
            a newer format; the message names the file, and the tensor where there is one.
    """
    with local_folder(folder, (CONFIG_FILE, WEIGHTS_FILE)) as local:
        card = _read_card(local)
        model = _build(card, local / CONFIG_FILE)
        weights = _read_weights(local / WEIGHTS_FILE)
        _check_fit({name: tuple(value.shape) for name, value in weights.items()}, model, str(local / WEIGHTS_FILE))
    model.load_state_dict(weights, assign=True)
    return model.to(device).eval()


def load_metadata(folder: str | Path) -> dict[str, Any]:
    """The ``metadata`` given to ``save_pretrained``. Same places and errors as for ``from_pretrained``."""
    with local_folder(folder, (CONFIG_FILE,)) as local:
        metadata: dict[str, Any] = _read_card(local)["metadata"]
    return metadata


def weights_digest(folder: str | Path) -> str:
    """The first 16 hex digits of the sha256 of a local folder's weights, whatever its config."""
    digest = hashlib.sha256()
    with Path(folder, WEIGHTS_FILE).open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()[:16]


def _architecture_of(model: Any) -> str:
    for name, (model_type, _) in _ARCHITECTURES.items():
        if type(model) is model_type:
            return name
    raise InputError(f"cannot save a {type(model).__name__}; the models that can be are {', '.join(_ARCHITECTURES)}")


def _variant_name(config: Any) -> str | None:
    """The name ``build_model`` knows this geometry by, if it is one of those."""
    return next((name for name in available_models() if model_config(name) == config), None)


def _build(card: Mapping[str, Any], source: Path) -> Any:
    if card["architecture"] not in _ARCHITECTURES:
        near = difflib.get_close_matches(str(card["architecture"]), _ARCHITECTURES, n=1, cutoff=0.0)[0]
        raise InputError(
            f"{source} has architecture {card['architecture']!r}, which is unknown; the nearest is {near!r}"
        )
    model_type, config_type = _ARCHITECTURES[card["architecture"]]
    try:
        layouts = [_as_modalities(card[key]) for key in ("modalities", "labels") if key in card]
        # No memory and no initial values: the weights are about to be put in their place.
        with torch.device("meta"):
            return model_type(config_type.from_dict(card["config"]), *layouts)
    except (ConfigError, TypeError) as error:
        raise InputError(f"{source} does not describe a valid model: {error}") from error


def _as_modalities(entries: list[dict[str, Any]]) -> list[Modality]:
    shapes = [None if entry.get("shape") is None else tuple(entry["shape"]) for entry in entries]
    return [Modality(**{**entry, "shape": shape}) for entry, shape in zip(entries, shapes, strict=True)]


def _read_card(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_FILE
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"no model in {folder}: {CONFIG_FILE} is missing (or its writing was interrupted)") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is no valid JSON: {error}") from error
    wanted = ("format_version", "architecture", "config", "modalities", "metadata")
    missing = [key for key in wanted if not isinstance(card, dict) or key not in card]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}; it is not a model of this package")
    if card["format_version"] != FORMAT_VERSION:
        raise InputError(f"{path} has format version {card['format_version']}, this package reads {FORMAT_VERSION}")
    return card


def _write_weights(weights: Mapping[str, Tensor], path: Path) -> None:
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    checksums = json.dumps({name: _checksum(value) for name, value in tensors.items()})
    path.touch()
    mode = path.stat().st_mode  # what the umask gives; safetensors would leave a file that only its owner reads
    save_file(tensors, path, metadata={"format": "pt", "crc32": checksums})
    _sort_header(path)
    path.chmod(mode)


def _sort_header(path: Path) -> None:
    """safetensors writes its metadata in a random order; the same weights are the same bytes, and one digest, here."""
    with path.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        stream.seek(8)
        stream.write(text.ljust(size))


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise InputError(f"no weights at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            checksums = json.loads((file.metadata() or {}).get("crc32", "{}"))
            # Cloned: the file's own layout is not aligned, and unaligned kernels round differently.
            weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (a handle)
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is truncated or corrupt: {error}") from error
    for name, value in weights.items():
        if name in checksums and checksums[name] != _checksum(value):
            raise InputError(f"{path} is corrupt: the values of tensor {name!r} do not match their checksum")
    return weights


def _checksum(value: Tensor) -> int:
    return zlib.crc32(value.reshape(-1).view(torch.uint8).numpy().data)


def _check_fit(found: Mapping[str, tuple[int, ...]], model: Any, source: str) -> None:
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in found:
            raise InputError(f"{source} lacks tensor {name!r} of shape {list(shape)}")
        if found[name] != shape:
            raise InputError(f"{source}: tensor {name!r} has shape {list(found[name])}, the model needs {list(shape)}")
    if extra := sorted(set(found) - set(expected)):
        raise InputError(f"{source} has tensor {extra[0]!r} ({len(extra)} in all) that the model does not have")


def _replace(path: Path, write: Any) -> None:
    """Write under a temporary name beside ``path``, flush to disk, rename."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
