"""The model that fine-tuning starts from: a pretrained one, the same at another resolution, or a fresh one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from hip_model.export import from_pretrained, load_metadata, weights_digest
from hip_model.normalisation import Normalisation, normalisations_from_card
from hip_model.variants import build_model
from pipeline import storage
from pipeline.errors import UserError
from pipeline.evaluate.baseline import PREFIX, build_baseline, is_baseline, open_baseline
from pipeline.evaluate.finetune_options import FinetuneOptions
from pipeline.seeding import derive_seed
from pipeline.shards.data_fit import absent_modalities
from pipeline.shards.manifest import Manifest
from pipeline.shards.schema import ModalitySpec
from pipeline.train.warm_start import fit_to_data


@dataclass(frozen=True)
class Start:
    """A model, how its inputs are normalised, and what its metadata will say."""

    model: Any
    normalisations: dict[str, Normalisation]
    metadata: dict[str, Any]
    weights: str | None = None  # digest of the weights; none: from scratch
    absent: tuple[ModalitySpec, ...] = ()  # what the model reads and the dataset does not have

    def specs(self, manifest: Manifest) -> tuple[ModalitySpec, ...]:
        """What the model reads of each example."""
        known = {modality.name for modality in self.model.modalities}
        return tuple(spec for spec in (*manifest.modalities, *self.absent) if spec.name in known)


def starting_model(options: FinetuneOptions, manifest: Manifest) -> Start:
    """Build or load the model for this dataset.

    Raises:
        UserError: the pretrained model does not fit the data, or a model name that does not exist.
    """
    return _fresh(options, manifest) if options.init is None else _pretrained(options, manifest)


def _fresh(options: FinetuneOptions, manifest: Manifest) -> Start:
    modalities = [spec.to_modality() for spec in manifest.modalities]
    torch.manual_seed(derive_seed(options.seed, "init"))
    if options.model.name.startswith(PREFIX):
        card = manifest.data_card()
        baseline = build_baseline(options.model.name, modalities, options.model.overrides)
        return Start(baseline, normalisations_from_card(card), {"data": card})
    try:
        model = build_model(options.model.name, modalities, **options.model.overrides)
    except ValueError as error:
        raise UserError(f"model={options.model.name}: {error}") from error
    card = manifest.data_card()
    return Start(model, normalisations_from_card(card), {"data": card})


def _pretrained(options: FinetuneOptions, manifest: Manifest) -> Start:
    assert options.init is not None
    folder = storage.local_path(options.init)
    if not (folder / "model.safetensors").is_file():
        raise UserError(
            f"init={options.init}: there is no model.safetensors; give a model folder, a checkpoint or a run"
        )
    metadata = load_metadata(folder)
    model = open_baseline(folder) if is_baseline(folder) else from_pretrained(folder)
    weights = weights_digest(folder)  # at once: the checkpoint of a run in training is deleted some steps later
    known = {modality.name for modality in model.modalities}
    specs = [spec for spec in metadata.get("data", {}).get("modalities", []) if spec["name"] in known]
    absent = absent_modalities(specs, [spec.to_dict() for spec in manifest.modalities], options.absent)
    model = fit_to_data(model, metadata, manifest, options.shards, options.resize_positions, absent)
    card = {**manifest.data_card(), "normalisation": metadata["data"]["normalisation"]}
    if absent:  # the model still reads them
        card["modalities"] = [*card["modalities"], *(spec.to_dict() for spec in absent)]
        card["recipe"] = metadata["data"].get("recipe", {})
    return Start(model, normalisations_from_card(metadata["data"]), {**metadata, "data": card}, weights, absent)
