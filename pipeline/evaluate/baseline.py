"""Image baselines under the same fine-tuning and evaluation as ours: any classifier of timm, from scratch.

``model.name=timm/resnet50`` and the like. A baseline has the call surface of the other models as far as a classifier
needs it: one level with one latent, which is the network's pooled feature vector.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hip_model.modality import Modality
from hip_model.ordering import inverse, token_order
from pipeline.errors import UserError

PREFIX = "timm/"
ARCHITECTURE = "timm"


@dataclass(frozen=True)
class BaselineConfig:
    """A network of timm and the width of its feature vector."""

    name: str  # timm's own name
    num_channels: int
    overrides: dict[str, Any] = field(default_factory=dict)  # further arguments of timm.create_model


class Baseline(nn.Module):
    """Tokens of one picture [B, T, 3] to a timm network's features."""

    raster: Tensor

    def __init__(self, name: str, modalities: Sequence[Modality], overrides: Mapping[str, Any]) -> None:
        super().__init__()
        self.modalities = list(modalities)
        picture = _picture(self.modalities)
        self.network = _create(name, picture, overrides)
        self.config = BaselineConfig(name, int(self.network.num_features), dict(overrides))
        order = inverse(token_order(picture.token_order, picture.shape or ()))
        self.register_buffer("raster", torch.from_numpy(np.array(order)), persistent=False)

    def encode(self, inputs: Mapping[str, Tensor], selection: Any = None) -> list[Tensor]:
        """One level of one latent, [B, 1, 1, D]."""
        picture = _picture(self.modalities)
        assert picture.shape is not None
        tokens = inputs[picture.name].index_select(1, self.raster)
        pixels = tokens.transpose(1, 2).unflatten(2, picture.shape)
        return [self.network(pixels)[:, None, None, :]]

    def group_plan(self) -> Any:
        """Asked for only where an example lacks a modality, which a baseline cannot take.

        Raises:
            UserError: always.
        """
        raise UserError("a baseline needs its picture in every example, but some have none; leave those out")

    def forward(self, inputs: Mapping[str, Tensor], selection: Any = None) -> Any:
        """Reconstructions are what a baseline does not make.

        Raises:
            UserError: always.
        """
        raise UserError(f"{PREFIX}{self.config.name} classifies; it has no decoder to reconstruct or to segment with")


def build_baseline(name: str, modalities: Sequence[Modality], overrides: Mapping[str, Any]) -> Baseline:
    """``timm/<name>`` with random weights for one picture modality.

    Raises:
        UserError: no timm, a name it does not know, or data that is not one picture an example.
    """
    return Baseline(name.removeprefix(PREFIX), modalities, overrides)


def save_baseline(model: Baseline, folder: Path, metadata: Mapping[str, Any]) -> None:
    """The same two files as any model's: ``model.safetensors`` and ``config.json``."""
    from safetensors.torch import save

    folder.mkdir(parents=True, exist_ok=True)
    card = {
        "format_version": 1,
        "architecture": ARCHITECTURE,
        "name": f"{PREFIX}{model.config.name}",
        "config": asdict(model.config),
        "modalities": [asdict(modality) for modality in model.modalities],
        "metadata": dict(metadata),
    }
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    _replace(folder / "model.safetensors", save(tensors))
    _replace(folder / "config.json", (json.dumps(card, indent=2) + "\n").encode())


def open_baseline(folder: Path, device: torch.device | str = "cpu") -> Baseline:
    """What :func:`save_baseline` wrote, in evaluation mode.

    Raises:
        UserError: no timm, or weights that do not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    card = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    layouts = [Modality(**{**entry, "shape": tuple(entry["shape"])}) for entry in card["modalities"]]
    model = Baseline(card["config"]["name"], layouts, card["config"]["overrides"])
    try:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{folder / 'model.safetensors'} does not fit {card['name']}: {error}") from error
    return model.to(device).eval()


def is_baseline(folder: Path) -> bool:
    """Whether a model folder holds a baseline."""
    try:
        return bool(json.loads((folder / "config.json").read_text(encoding="utf-8"))["architecture"] == ARCHITECTURE)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _create(name: str, picture: Modality, overrides: Mapping[str, Any]) -> Any:
    try:
        import timm
    except (
        ImportError,
        RuntimeError,
    ) as error:  # torchvision fails with RuntimeError beside a torch it was not built for
        raise UserError(
            f"model.name={PREFIX}{name} needs timm, and a torchvision built for torch {torch.__version__} ({error}); "
            "install both from where torch came from: pip install timm torchvision"
        ) from error
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:5]) or "resnet50, vit_base_patch16_224"
        raise UserError(f"model.name={PREFIX}{name}: timm has no such model; near it: {near}")
    wanted = {"num_classes": 0, "in_chans": picture.num_channels, **overrides}
    try:  # transformers are built for one size, convolutional networks do not take the argument
        return timm.create_model(name, pretrained=False, **{"img_size": picture.shape, **wanted})
    except TypeError:
        return timm.create_model(name, pretrained=False, **wanted)


def _picture(modalities: Sequence[Modality]) -> Modality:
    if len(modalities) != 1 or modalities[0].shape is None or len(modalities[0].shape) != 2:
        names = ", ".join(f"{modality.name} {modality.shape}" for modality in modalities)
        raise UserError(f"a baseline takes one picture [height, width] an example, the data has {names}")
    return modalities[0]


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
