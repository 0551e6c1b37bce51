"""The model that fine-tuning starts from: a pretrained one, the same at another resolution, or a fresh one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hip_model.export import from_pretrained, load_metadata
from hip_model.fourier import resize_position_table
from hip_model.modality import Modality
from hip_model.normalisation import Normalisation, normalisations_from_card
from hip_model.variants import build_model
from pipeline import storage
from pipeline.errors import UserError, nearest
from pipeline.evaluate.baseline import PREFIX, build_baseline, is_baseline, open_baseline
from pipeline.evaluate.data_fit import check_fit
from pipeline.evaluate.finetune_options import FinetuneOptions
from pipeline.evaluate.loaded import weights_digest
from pipeline.seeding import derive_seed
from pipeline.shards.manifest import Manifest


@dataclass(frozen=True)
class Start:
    """A model, how its inputs are normalised, and what its metadata will say."""

    model: Any
    normalisations: dict[str, Normalisation]
    metadata: dict[str, Any]
    weights: str | None = None  # digest of the weights; none: from scratch


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
    wanted = [spec for spec in metadata["data"]["modalities"] if spec["name"] in known]
    given = [spec.to_dict() for spec in manifest.modalities]
    shapes = {spec["name"]: tuple(spec["shape"]) for spec in given}
    resized = [
        spec["name"] for spec in wanted if shapes.get(spec["name"], tuple(spec["shape"])) != tuple(spec["shape"])
    ]
    if resized and options.resize_positions:
        # A different size changes the shape and what the recipe says about sampling; everything else must still agree.
        loose = [{**spec, "shape": None, "sampling": None} if spec["name"] in resized else spec for spec in wanted]
        check_fit(loose, given, options.shards)
        model = at_resolution(model, [spec.to_modality() for spec in manifest.modalities if spec.name in known])
    else:
        _explain_resize(resized)
        check_fit(wanted, given, options.shards)
    card = {**manifest.data_card(), "normalisation": metadata["data"]["normalisation"]}
    return Start(model, normalisations_from_card(metadata["data"]), {**metadata, "data": card}, weights)


def at_resolution(model: Any, modalities: list[Modality]) -> Any:
    """The same weights for inputs of another size; learned position tables are interpolated along their axes.

    The new model's modalities keep the old order. Worth a warm start only: see ``resize_position_table``.

    Raises:
        UserError: a modality that the model does not have.
    """
    old = {modality.name: modality for modality in model.modalities}
    new = {modality.name: modality for modality in modalities}
    for name in new:
        if name not in old:
            raise UserError(f"modality {name!r} is not the model's; {nearest(name, old)}")
    resized = type(model)(model.config, [new.get(name, modality) for name, modality in old.items()])
    state = {key: _fitted(key, value, old, new) for key, value in model.state_dict().items()}
    resized.load_state_dict(state)
    return resized


def _fitted(key: str, value: Tensor, old: dict[str, Modality], new: dict[str, Modality]) -> Tensor:
    parts = key.split(".")
    if parts[0] != "positions" or parts[-1] != "weight" or parts[1] not in new or len(parts) != 3:
        return value
    before, after = old[parts[1]], new[parts[1]]
    if before.shape == after.shape or before.shape is None or after.shape is None:
        return value
    return resize_position_table(value, before.shape, after.shape, before.token_order)


def _explain_resize(resized: list[str]) -> None:
    if resized:
        raise UserError(
            f"the data has another resolution than the model in {', '.join(resized)}; resize_positions=true "
            "interpolates the position tables, or preprocess the data at the model's size"
        )
