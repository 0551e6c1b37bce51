"""The model, the data and their fit: everything made from options that training, planning and tuning share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from hip_model import ConfigError, Modality, available_models, build_model
from hip_model.accounting import forward_flops
from hip_model.autoencoder import LossConfig, MaskedAutoencoder
from hip_model.export import save_pretrained
from hip_model.masking import MaskConfig
from hip_model.normalisation import Normalisation
from pipeline.errors import UserError, nearest
from pipeline.host_memory import keep_freed_memory
from pipeline.ingest.loader import BatchLoader
from pipeline.ingest.order import ExampleOrder
from pipeline.ingest.weighted import WeightedOrder
from pipeline.seeding import derive_seed
from pipeline.shards.combined import draw_weights, ends_of_unlike
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import ShardReader
from pipeline.storage import absolute
from pipeline.train.checkpoint_files import AVERAGE
from pipeline.train.options import MaskOptions, PretrainOptions, ScaleOptions

_Options = TypeVar("_Options", bound=PretrainOptions)
TRAIN, VALIDATION = "train", "validation"


def prepare_device(scale: ScaleOptions) -> torch.device:
    """The kind of device that a worker trains on, with this process's threads and memory set up for it."""
    torch.set_num_threads(scale.threads_per_worker)
    if scale.gpus_per_worker:
        return torch.device("cuda")
    keep_freed_memory()
    return torch.device("cpu")


def with_absolute_places(options: _Options) -> _Options:
    """Local folders in full: workers and trials run in folders of their own."""
    cache = options.ingest.cache
    if not cache.folder.startswith("~"):  # the home folder is each machine's own
        cache = replace(cache, folder=absolute(cache.folder))
    return replace(
        options,
        shards=absolute(options.shards),
        storage=absolute(options.storage),
        ingest=replace(options.ingest, cache=cache),
    )


def build_autoencoder(
    options: PretrainOptions, manifest: Manifest, normalisation: Mapping[str, Normalisation] | None = None
) -> MaskedAutoencoder:
    """The model with its mask and loss, initialised from ``options.seed`` alone.

    Without a ``normalisation`` inputs are normalised by the statistics of the dataset.

    Raises:
        UserError: an unknown name, or an option that does not fit the model or the data.
    """
    if options.model.name not in available_models():
        raise UserError(f"model.name={options.model.name}: {nearest(options.model.name, available_models())}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(options.seed, "weights"))
        try:
            model: Any = build_model(options.model.name, modalities_of(manifest), **options.model.overrides)
            if options.validation.mask is not None:
                mask_config(options.validation.mask).check(model.modalities)
            statistics = normalisation_of(manifest) if normalisation is None else normalisation
            return MaskedAutoencoder(model, mask_config(options.mask), loss_config(options), statistics)
        except ConfigError as error:
            raise UserError(f"model={options.model.name} does not fit {options.shards}: {error}") from error


def build_skeleton(options: PretrainOptions, manifest: Manifest) -> MaskedAutoencoder:
    """The same without weights, on the meta device."""
    with torch.device("meta"):
        return build_autoencoder(options, manifest)


def modalities_of(manifest: Manifest) -> list[Modality]:
    """The dataset's modalities as a model sees them."""
    return [spec.to_modality() for spec in manifest.modalities]


def mask_config(mask: MaskOptions) -> MaskConfig:
    """The model's form of a mask."""
    return MaskConfig(mask.policy, mask.ratio, mask.per_modality)


def trained_config(config: Any, options: PretrainOptions) -> Any:
    """A model's config as training uses it: ``engine.activation_checkpointing`` is no part of the model."""
    recomputes = options.engine.activation_checkpointing
    return config.replace(activation_checkpointing="blocks") if recomputes else config


def loss_config(options: PretrainOptions) -> LossConfig:
    """The model's form of ``loss``."""
    return LossConfig(options.loss.on, options.loss.weights)


def normalisation_of(manifest: Manifest) -> dict[str, Normalisation]:
    """Means and deviations of the training split, in raw units."""
    dtypes = {spec.name: spec.dtype for spec in manifest.modalities}
    return {name: Normalisation(mean, std, dtypes[name]) for name, (mean, std) in manifest.normalisation().items()}


def is_complete_data(manifest: Manifest) -> bool:
    """Whether every training example has every modality."""
    return not incomplete_modalities(manifest)


def incomplete_modalities(manifest: Manifest) -> dict[str, int]:
    """How many training examples have a modality, for those that not all have."""
    found, everyone = manifest.statistics(TRAIN), manifest.num_examples(TRAIN)
    counts = {spec.name: found[spec.name].examples if spec.name in found else 0 for spec in manifest.modalities}
    return {name: count for name, count in counts.items() if count < everyone}


def flops_per_example(model: Any, options: PretrainOptions) -> float:
    """Forward matrix-product FLOPs of one masked example."""
    return float(forward_flops(model.config, model.modalities, mask_config(options.mask)))


def compile_blocks(model: Any) -> None:
    """Compile block by block: smaller graphs, one compilation for equal blocks."""
    for stage in model.stages():
        stage.compile()


@dataclass
class TrainingData:
    """The shards of one worker."""

    options: PretrainOptions
    reader: ShardReader
    order: ExampleOrder
    rank: int
    workers: int
    pin_memory: bool = False

    @classmethod
    def open(
        cls, options: PretrainOptions, manifest: Manifest, rank: int, workers: int, pin_memory: bool = False
    ) -> TrainingData:
        """Open the training split, of which the modalities of ``manifest`` are read.

        Raises:
            UserError: no dataset, or no training split in it.
        """
        ingest = options.ingest
        reader = ShardReader(options.shards, TRAIN, cache=ingest.cache, specs=manifest.modalities)
        bounds = reader.block_bounds() if ingest.order == "blocks" else None
        ends = ends_of_unlike(manifest, TRAIN)
        how = (options.seed, manifest.fingerprint, ingest.order, bounds, ingest.window_blocks, ends)
        weights = draw_weights(manifest, TRAIN)
        if weights is None:
            order = ExampleOrder(len(reader), *how)
        else:
            order = WeightedOrder(np.arange(len(reader)), weights, *how)
        return cls(options, reader, order, rank, workers, pin_memory)

    def loader(self, start_examples: int) -> BatchLoader:
        """Batches from a position on."""
        return BatchLoader(
            self.reader,
            self.order,
            self.options.batch.global_size,
            self.rank,
            self.workers,
            start_examples,
            options=self.options.ingest,
            pin_memory=self.pin_memory,
        )


@dataclass
class ModelExport:
    """Writes the portable model from float32 weights by name, whatever the engine holds."""

    skeleton: nn.Module  # the model on the meta device: names and shapes, where ZeRO-3 leaves pieces in the live one
    live: nn.Module
    metadata: Mapping[str, object]

    def __call__(self, weights: Mapping[str, Tensor], average: Mapping[str, Tensor] | None, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json``; the same of averaged weights, if there are any, below."""
        buffers = dict(self.live.named_buffers())
        fixed = {name: buffers[name] for name in self.skeleton.state_dict() if name in buffers}
        for values, place in ((weights, folder), (average, folder / AVERAGE)):
            if values is not None:
                trained = {name.removeprefix("model."): value for name, value in values.items()}
                save_pretrained(self.skeleton, place, self.metadata, fixed | trained)
