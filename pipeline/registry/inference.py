"""A model folder as a function of raw tokens: embeddings, label probabilities, reconstructions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hip_model.autoencoder import MaskedAutoencoder
from hip_model.masking import MaskConfig
from pipeline.errors import UserError
from pipeline.evaluate.head import Head, load_head, pool_features
from pipeline.evaluate.loaded import LoadedModel, load_model
from pipeline.shards.schema import ModalitySpec

Arrays = Mapping[str, NDArray[np.generic] | None]
Batches = dict[str, np.ndarray]


@dataclass(frozen=True)
class Predictor:
    """A loaded model, its head if it has one, and the modalities as they are stored."""

    loaded: LoadedModel
    head: Head | None
    specs: dict[str, ModalitySpec]

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> Predictor:
        """Open a folder written by ``save_pretrained``.

        Raises:
            UserError: no usable model there.
        """
        loaded = load_model(folder, device)
        specs = {entry["name"]: ModalitySpec.from_dict(entry) for entry in loaded.metadata["data"]["modalities"]}
        head = load_head(folder)
        return cls(loaded, head, {name: specs[name] for name in loaded.modality_names})

    def stack(self, examples: Sequence[Arrays]) -> tuple[Batches, Batches]:
        """Examples of raw ``[T, C]`` arrays as batches ``[B, T, C]`` and presence ``[B]``; absent ones become zeros.

        Raises:
            UserError: an array of another shape or type than the model's, or an example with nothing in it.
        """
        batches, present = {}, {}
        for name, spec in self.specs.items():
            arrays = [example.get(name) for example in examples]
            for array in arrays:
                if array is not None:
                    _check_array(spec, array)
            shape = (len(examples), spec.num_tokens, spec.num_channels)
            batches[name] = np.zeros(shape, dtype=spec.dtype)
            for row, array in enumerate(arrays):
                if array is not None:
                    batches[name][row] = array
            present[name] = np.array([array is not None for array in arrays])
        if not np.logical_or.reduce(list(present.values())).all():
            raise UserError(f"an example has none of the model's modalities ({', '.join(self.specs)})")
        return batches, present

    @torch.inference_mode()
    def embeddings(self, examples: Sequence[Arrays]) -> NDArray[np.float32]:
        """The processor's latents, averaged over groups and latents: float32 [B, D]."""
        batches, present = self.stack(examples)
        latents = self.loaded.model.encode(self.loaded.normalise(batches), self.loaded.presence(present))
        return _numpy(pool_features(latents, (-1,)))

    @torch.inference_mode()
    def probabilities(self, examples: Sequence[Arrays]) -> NDArray[np.float32]:
        """Probability of each label: float32 [B, classes].

        Raises:
            UserError: the model has no head.
        """
        head = self.require_head()
        batches, present = self.stack(examples)
        inputs, selection = self.loaded.normalise(batches), self.loaded.presence(present)
        latents = self.loaded.model.encode(inputs, selection)
        if max(head.levels) >= len(latents):
            latents = self.loaded.model(inputs, selection).latents
        return _numpy(head.probabilities(pool_features(latents, head.levels, head.pool).cpu()))

    @torch.inference_mode()
    def reconstructions(
        self, examples: Sequence[Arrays], mask_ratio: float = 0.0, seed: int = 0
    ) -> dict[str, np.ndarray]:
        """What the model makes of each example, in the stored type and units: ``[B, T, C]`` by modality.

        ``mask_ratio`` of the tokens are hidden from the model; so is every modality that an example lacks.
        """
        batches, present = self.stack(examples)
        raw = self._masked(batches, present, mask_ratio, seed) if mask_ratio else self._unmasked(batches, present)
        return {name: to_stored_type(_numpy(values), self.specs[name].dtype) for name, values in raw.items()}

    def _unmasked(self, batches: Batches, present: Batches) -> dict[str, torch.Tensor]:
        output = self.loaded.model(self.loaded.normalise(batches), self.loaded.presence(present))
        found = {}
        for name, spec in self.specs.items():  # with absences the answers come in slots, padding after the last token
            values = output.reconstruction[name][:, : spec.num_tokens]
            found[name] = self.loaded.normalisations[name].denormalise(values)
        return found

    def _masked(self, batches: Batches, present: Batches, mask_ratio: float, seed: int) -> dict[str, torch.Tensor]:
        device, mask = self.loaded.device, MaskConfig(ratio=mask_ratio)
        autoencoder = MaskedAutoencoder(self.loaded.model, mask, normalisation=self.loaded.normalisations)
        seeds = torch.arange(len(batches[next(iter(batches))]), device=device) + seed
        inputs = {name: torch.from_numpy(array).to(device) for name, array in batches.items()}
        known = None
        if not all(row.all() for row in present.values()):
            known = {name: torch.from_numpy(row).to(device) for name, row in present.items()}
        return autoencoder.reconstruct(inputs, seeds, known).reconstruction

    def require_head(self) -> Head:
        """The head.

        Raises:
            UserError: there is none.
        """
        if self.head is None:
            raise UserError(
                f"{self.loaded.name} has no label head, so it gives embeddings and reconstructions only; "
                "make one with: hip evaluate task=linear_probe export=<folder>, or hip finetune"
            )
        return self.head


def to_stored_type(values: np.ndarray, dtype: str) -> np.ndarray:
    """Floats in raw units rounded and clipped to the type that shards store."""
    if not np.issubdtype(np.dtype(dtype), np.integer):
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)


def _check_array(spec: ModalitySpec, array: np.ndarray) -> None:
    if array.shape != (spec.num_tokens, spec.num_channels) or array.dtype != np.dtype(spec.dtype):
        raise UserError(
            f"{spec.name}: the model takes {spec.dtype} [{spec.num_tokens}, {spec.num_channels}], "
            f"got {array.dtype} {list(array.shape)}; preprocess with the recipe in the model's config.json"
        )


def _numpy(values: torch.Tensor) -> np.ndarray:
    return values.float().cpu().numpy()
