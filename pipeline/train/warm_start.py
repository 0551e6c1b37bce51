"""Weights to start from instead of random ones (``init``); a run keeps a copy, and goes on without their source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hip_model.autoencoder import MaskedAutoencoder
from hip_model.export import CONFIG_FILE, WEIGHTS_FILE, from_pretrained, load_metadata, weights_digest
from hip_model.normalisation import normalisations_from_card
from hip_model.resolution import at_resolution
from pipeline.errors import UserError
from pipeline.shards.data_fit import check_fit
from pipeline.shards.manifest import Manifest
from pipeline.shards.schema import ModalitySpec
from pipeline.storage import folder_here, join, local_path, write_atomic
from pipeline.train.build import build_autoencoder
from pipeline.train.options import PretrainOptions

Card = dict[str, Any]

KEPT = "init"  # the folder of the copy, below the run's

# Fields of a model's config that change neither its weights nor what it computes when it is used.
_ONLY_IN_TRAINING = ("dropout", "drop_path", "activation_checkpointing")


def described_init(init: str) -> str:
    """What a run's record says of ``init``: the weights themselves, wherever they lie."""
    return f"weights {weights_digest(_folder_of(init))}"


def open_init(options: PretrainOptions, manifest: Manifest, planned: Any, init: str | Path) -> tuple[Any, Card]:
    """The model in folder ``init``, at the data's resolution, and the data card that its inputs are normalised by.

    ``planned`` is the model that ``options.model`` stands for, with or without weights.

    Raises:
        UserError: it is another model, or was trained on other modalities, sizes or samplings; naming both sides.
    """
    folder = _folder_of(init)
    try:
        model, metadata = from_pretrained(folder), load_metadata(folder)
    except ValueError as error:
        raise UserError(f"init={folder} cannot be opened: {error}") from error
    if not metadata.get("data", {}).get("normalisation"):
        raise UserError(f"init={folder}: its config.json has no data card, so its inputs cannot be normalised")
    _check_same_model(options, model, planned, folder, metadata)
    there, here = ([modality.name for modality in one.modalities] for one in (model, planned))
    if there != here:
        raise UserError(
            f"init={folder} knows {', '.join(there)}, this run reads {', '.join(here)}; the modalities and their order "
            f"must be the same: modalities=[{','.join(there)}] reads these, and takes those that the data lack as "
            "missing from every example; or train from scratch"
        )
    model = fit_to_data(model, metadata, manifest, options.shards, options.resize_positions)
    card = {**manifest.data_card(), "normalisation": metadata["data"]["normalisation"]}
    if set(here) - manifest.statistics().keys():  # what no example has, the dataset's own recipe does not know
        card["recipe"] = metadata["data"].get("recipe", {})
    return model, card


def keep_init(init: str, run_folder: str) -> None:
    """Copy the weights and their config into the run's folder, where its workers, also later ones, find them."""
    source = _folder_of(init)
    for name in (WEIGHTS_FILE, CONFIG_FILE):
        write_atomic(join(run_folder, KEPT, name), (source / name).read_bytes())


def start_from_kept(
    options: PretrainOptions, manifest: Manifest, planned: Any, run_folder: str
) -> tuple[MaskedAutoencoder, Card]:
    """The autoencoder with the weights that the run keeps, and the data card that its inputs are normalised by."""
    with folder_here(join(run_folder, KEPT)) as here:
        model, card = open_init(options, manifest, planned, here)
    autoencoder = build_autoencoder(options, manifest, normalisations_from_card(card))
    autoencoder.model.load_state_dict(model.state_dict())
    return autoencoder, card


def fit_to_data(
    model: Any,
    metadata: Mapping[str, Any],
    manifest: Manifest,
    shards: str,
    resize_positions: bool,
    absent: Sequence[ModalitySpec] = (),
) -> Any:
    """A pretrained model for these data; with ``resize_positions`` at their resolution, where it is another one.

    The data need not have what is ``absent``.

    Raises:
        UserError: the data are not what the model was trained on; with every difference.
    """
    known = {modality.name for modality in model.modalities}
    wanted = [spec for spec in metadata["data"]["modalities"] if spec["name"] in known]
    specs = [*manifest.modalities, *absent]
    given = [spec.to_dict() for spec in specs]
    shapes = {spec["name"]: tuple(spec["shape"]) for spec in given}
    resized = [
        spec["name"] for spec in wanted if shapes.get(spec["name"], tuple(spec["shape"])) != tuple(spec["shape"])
    ]
    if not resized:
        check_fit(wanted, given, shards)
        return model
    if not resize_positions:
        raise UserError(
            f"the data has another resolution than the model in {', '.join(resized)}; resize_positions=true "
            "interpolates the position tables, or preprocess the data at the model's size"
        )
    # A different size changes the shape and what the recipe says about sampling; everything else must still agree.
    loose = [{**spec, "shape": None, "sampling": None} if spec["name"] in resized else spec for spec in wanted]
    check_fit(loose, given, shards)
    return at_resolution(model, [spec.to_modality() for spec in specs if spec.name in known])


def _folder_of(init: str | Path) -> Path:
    folder = local_path(str(init))
    if not (folder / WEIGHTS_FILE).is_file():
        raise UserError(f"init={init}: there is no {WEIGHTS_FILE}; give a model folder, a checkpoint or a run")
    return folder


def _check_same_model(
    options: PretrainOptions, model: Any, planned: Any, folder: Path, metadata: Mapping[str, Any]
) -> None:
    """Refuse weights of another geometry; which ``model`` they need is in their metadata."""
    name, asked = metadata.get("model_name", type(model).__name__), f"model={options.model.name}"
    there, here = asdict(model.config), asdict(planned.config)
    found = [
        f"{key}: {there.get(key)} there, {here.get(key)} by {asked}"
        for key in dict.fromkeys([*there, *here])
        if key not in _ONLY_IN_TRAINING and there.get(key) != here.get(key)
    ]
    if found or type(model) is not type(planned):
        differences = "\n  ".join(found) or f"{type(model).__name__} there, {type(planned).__name__} by {asked}"
        raise UserError(
            f"init={folder} is {name}, another model than {asked}:\n  {differences}\n"
            f"give model={name} with the same model.overrides, or train from scratch"
        )
