"""Which modalities a run reads: all that its dataset has, some of them, or also some that its examples lack."""

from __future__ import annotations

from collections.abc import Sequence

from hip_model.export import CONFIG_FILE, load_metadata
from pipeline.errors import UserError, nearest
from pipeline.shards.manifest import Manifest
from pipeline.shards.schema import ModalitySpec
from pipeline.storage import local_path
from pipeline.train.build import TRAIN
from pipeline.train.options import PretrainOptions


def manifest_as_read(options: PretrainOptions) -> Manifest:
    """The dataset's manifest with the modalities that ``options.modalities`` names, in that order.

    Raises:
        UserError: no dataset, a modality that neither it nor the model of ``init`` knows, or nothing left to train on.
    """
    manifest = Manifest.load(options.shards)
    read = manifest.read_as(chosen_modalities(options, manifest.modalities))
    there = manifest.statistics(TRAIN) if options.modalities is not None and manifest.splits.get(TRAIN) else {}
    if there and not any(spec.name in there for spec in read.modalities):
        raise UserError(
            f"modalities={[spec.name for spec in read.modalities]}: no training example in {options.shards} has any of "
            f"them, only {', '.join(there)}"
        )
    return read


def chosen_modalities(options: PretrainOptions, there: Sequence[ModalitySpec]) -> tuple[ModalitySpec, ...]:
    """Those of ``there`` that the run reads, and those of ``init`` that it names and that ``there`` lacks.

    Raises:
        UserError: a name that neither has.
    """
    if options.modalities is None:
        return tuple(there)
    in_data = {spec.name: spec for spec in there}
    known = {**_of_init(options.init), **in_data}
    for name in options.modalities:
        if name not in known:
            also = " (what it lacks can be named where init= knows it)" if options.init is None else " or in init"
            raise UserError(f"modalities: there is no {name!r} in {options.shards}{also}; {nearest(name, known)}")
    return tuple(known[name] for name in options.modalities)


def _of_init(init: str | None) -> dict[str, ModalitySpec]:
    """What the model to start from was trained on; a folder that is none is refused where it is opened."""
    if init is None or not (local_path(init) / CONFIG_FILE).is_file():
        return {}
    specs = load_metadata(local_path(init)).get("data", {}).get("modalities", [])
    return {str(spec["name"]): ModalitySpec.from_dict(spec) for spec in specs}
