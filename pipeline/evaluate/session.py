"""What all tasks of one evaluation share: the model, the readers and the finished embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field

from hip_model.export import weights_digest
from pipeline import storage
from pipeline.errors import UserError, nearest
from pipeline.evaluate.embed import Embeddings, EmbedRequest, embed
from pipeline.evaluate.loaded import LoadedModel, check_model_fits, load_model
from pipeline.evaluate.options import EvaluateOptions
from pipeline.shards.manifest import MANIFEST_NAME, Manifest
from pipeline.shards.reader import ShardReader
from pipeline.shards.schema import ModalitySpec


@dataclass
class Session:
    """An opened model on an opened dataset; readers open at first use."""

    options: EvaluateOptions
    loaded: LoadedModel
    weights: str  # their digest, taken at once: the checkpoint of a run in training is deleted some steps later
    manifest: Manifest
    folder: str
    absent: tuple[ModalitySpec, ...] = ()  # what the model reads and the dataset does not have
    _readers: dict[str, ShardReader] = field(default_factory=dict)

    @property
    def specs(self) -> tuple[ModalitySpec, ...]:
        """What the task reads of each example; what the dataset does not have is missing from all."""
        wanted = set(self.loaded.modality_names)
        if self.options.task == "segmentation":
            wanted.add(self.options.segmentation.labels)
        return tuple(spec for spec in (*self.manifest.modalities, *self.absent) if spec.name in wanted)

    def reader(self, split: str) -> ShardReader:
        """The reader of one split.

        Raises:
            UserError: the dataset has no such split.
        """
        if split not in self._readers:
            self._readers[split] = ShardReader(self.options.shards, split=split, specs=self.specs)
        return self._readers[split]

    @property
    def label_names(self) -> list[str]:
        """The dataset's labels."""
        return list(self.manifest.label_names)

    def count(self, split: str) -> int:
        """Examples of a split that this evaluation reads: the fit limit for the fit split, else the score limit."""
        limit = self.options.limit
        bound = limit.score_examples if split == self.options.split else limit.fit_examples
        available = len(self.reader(split))
        return available if bound is None else min(bound, available)

    def embeddings(
        self, split: str, level_count: int | None = None, modalities: tuple[str, ...] | None = None
    ) -> Embeddings:
        """Pooled latents of the examples read from a split, all encoder levels unless more are asked for."""
        request = EmbedRequest(
            shards=self.options.shards,
            split=split,
            count=self.count(split),
            level_count=level_count or self.loaded.num_encoder_levels,
            modalities=modalities,
            specs=self.specs,
        )
        cache = self.options.embed.cache or storage.join(self.folder, "embeddings")
        return embed(self.loaded, self.weights, self.reader(split), request, self.options.embed, cache)

    def level_choices(self) -> list[tuple[int, ...]]:
        """What ``probe.level`` asks for: one set of blocks, pooled side by side, or with "all" each block alone.

        Raises:
            UserError: the model has no such block.
        """
        if self.options.probe.level == "encoder":
            return [tuple(range(self.loaded.num_encoder_levels))]
        if self.options.probe.level == "all":
            return [(level,) for level in range(self.loaded.num_encoder_levels)]
        return [(self.one_level(),)]

    def one_level(self) -> int:
        """The block that ``probe.level`` names; the processor where it names several.

        Raises:
            UserError: the model has no such block.
        """
        asked = self.options.probe.level
        last_encoder = self.loaded.num_encoder_levels - 1
        if not asked.isdigit():
            return last_encoder
        groups = getattr(self.loaded.model.config, "num_groups", None)
        blocks = len(groups) if groups is not None else self.loaded.num_encoder_levels
        if int(asked) >= blocks:
            raise UserError(
                f"probe.level={asked}: this model has blocks 0 to {blocks - 1}; {last_encoder} is the processor"
            )
        return int(asked)


def open_session(options: EvaluateOptions, folder: str) -> Session:
    """Load model and manifest and hold them against each other before any work.

    Raises:
        UserError: no model, no dataset, or data that the model was not made for.
    """
    loaded = load_model(storage.local_path(options.model), options.device)
    weights = weights_digest(loaded.folder)
    if options.task == "segmentation" and options.segmentation.voc is not None:
        _make_voc(options, loaded)
    manifest = Manifest.load(options.shards)
    absent = check_model_fits(loaded, manifest, options.shards, options.absent)
    return Session(options, loaded, weights, manifest, folder, absent)


def _make_voc(options: EvaluateOptions, loaded: LoadedModel) -> None:
    """Write the VOC folder to ``shards``, unless a dataset is there already."""
    if storage.exists(storage.join(options.shards, MANIFEST_NAME)):
        return
    from pipeline.evaluate.voc import write_voc_shards

    wanted = options.segmentation
    specs = {spec["name"]: ModalitySpec.from_dict(spec) for spec in loaded.metadata["data"]["modalities"]}
    if wanted.images not in specs:
        raise UserError(f"segmentation.images={wanted.images!r}: {nearest(wanted.images, specs)}")
    assert wanted.voc is not None
    write_voc_shards(storage.local_path(wanted.voc), options.shards, specs[wanted.images], wanted.labels)
