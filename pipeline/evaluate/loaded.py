"""A model folder opened for evaluation: weights, data card, normalisation, and what to do about absent modalities."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hip_model.export import from_pretrained, load_metadata
from hip_model.normalisation import Normalisation, normalisations_from_card
from hip_model.selection import EMPTY_SLOT, TokenSelection
from pipeline.errors import UserError
from pipeline.shards.data_fit import absent_modalities, check_fit
from pipeline.shards.manifest import Manifest
from pipeline.shards.schema import ModalitySpec

WEIGHTS_FILE = "model.safetensors"


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with the statistics of the data that it was trained on."""

    folder: Path
    model: Any  # HiP, PerceiverIO or Perceiver: one call surface, no common base class
    metadata: dict[str, Any]
    normalisations: dict[str, Normalisation]  # by modality
    device: torch.device

    @property
    def name(self) -> str:
        """What reports call it: the folder's name, with its run's name where the folder is (in) a checkpoint."""
        *above, last = self.folder.parts
        if len(above) > 2 and above[-2] == "checkpoints":  # the average of a checkpoint
            return f"{above[-3]}/{above[-1]}/{last}"
        return f"{above[-2]}/{last}" if len(above) > 1 and above[-1] == "checkpoints" else last

    @property
    def modality_names(self) -> list[str]:
        """The model's modalities in its own order."""
        return [modality.name for modality in self.model.modalities]

    @property
    def num_encoder_levels(self) -> int:
        """Blocks up to the processor, which is the last of them."""
        config = self.model.config
        groups = getattr(config, "num_groups", None)
        # A Perceiver's levels are its iterations; Perceiver IO has one.
        return len(groups) // 2 + 1 if groups is not None else getattr(config, "num_iterations", 1)

    def normalise(self, arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
        """Raw arrays [B, T, C] of the model's modalities, standardised on the model's device."""
        return {
            name: self.normalisations[name].normalise(torch.from_numpy(arrays[name]).to(self.device))
            for name in self.modality_names
        }

    def presence(self, present: Mapping[str, np.ndarray], only: Iterable[str] | None = None) -> TokenSelection | None:
        """The selection that hides what an example lacks; None when nothing is hidden.

        Args:
            present: [B] booleans by modality.
            only: hide every modality that is not named here (cross-modal embedding).
        """
        kept = set(only) if only is not None else set(self.modality_names)
        rows = {name: np.asarray(present[name], dtype=bool) & (name in kept) for name in self.modality_names}
        if all(row.all() for row in rows.values()):
            return None
        return presence_selection(self.model, {name: torch.from_numpy(row) for name, row in rows.items()}, self.device)


def presence_selection(model: Any, present: Mapping[str, Tensor], device: torch.device) -> TokenSelection:
    """All tokens of the present modalities enter, none of the absent ones; every position is queried.

    ``present[name]`` is a boolean [B] in host memory.
    """
    visible, queries = {}, {}
    for modality in model.modalities:
        # One row for all groups: slots past the modality's last token count as empty.
        slots = torch.arange(model.group_plan()[modality.name].group_tokens, device=device).view(1, 1, -1)
        if present[modality.name].any():
            shown = present[modality.name].to(device).view(-1, 1, 1)
            visible[modality.name] = torch.where(shown, slots, EMPTY_SLOT)
        else:  # one empty slot says as much as many, and costs less
            visible[modality.name] = slots.new_full((1, 1, 1), EMPTY_SLOT)
        queries[modality.name] = slots
    return TokenSelection(visible=visible, queries=queries)


def load_model(folder: str | Path, device: str = "auto") -> LoadedModel:
    """Open a folder written by ``save_pretrained``.

    Raises:
        UserError: no model there, or no data card to normalise with.
    """
    folder = Path(folder)
    for name in (WEIGHTS_FILE, "config.json"):
        if not (folder / name).is_file():
            raise UserError(f"model={folder}: there is no {name}; give a model folder, a checkpoint or a run")
    where = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    try:
        model, metadata = _open(folder, where), load_metadata(folder)
    except ValueError as error:
        raise UserError(f"model={folder} cannot be opened: {error}") from error
    if not metadata.get("data", {}).get("normalisation"):
        raise UserError(f"model={folder}: its config.json has no data card, so its inputs cannot be normalised")
    return LoadedModel(folder, model, metadata, normalisations_from_card(metadata["data"]), where)


def _open(folder: Path, device: torch.device) -> Any:
    if json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architecture") == "timm":
        # By name only: a registered model carries the modules that are imported here, and none of it is a baseline.
        return importlib.import_module("pipeline.evaluate.baseline").open_baseline(folder, device)
    return from_pretrained(folder, device)


def check_model_fits(
    loaded: LoadedModel, manifest: Manifest, shards: str, absent: Sequence[str] = ()
) -> tuple[ModalitySpec, ...]:
    """Promise 6: a model is only ever given the data that it was made for.

    Returns: the modalities named in ``absent``, which the model has and the data need not have.

    Raises:
        UserError: naming each difference.
    """
    known = set(loaded.modality_names)
    specs = [spec for spec in loaded.metadata["data"]["modalities"] if spec["name"] in known]
    given = [spec.to_dict() for spec in manifest.modalities]
    lacking = absent_modalities(specs, given, absent)
    check_fit(specs, [*given, *(spec.to_dict() for spec in lacking)], shards)
    return lacking
