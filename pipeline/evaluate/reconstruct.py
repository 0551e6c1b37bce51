"""How well hidden tokens are told from visible ones: PSNR by modality and mask ratio, beside what guessing gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hip_model.autoencoder import MaskedAutoencoder, Reconstruction
from hip_model.errors import ConfigError
from hip_model.masking import MaskConfig, mask_seeds
from pipeline.errors import UserError
from pipeline.evaluate.figures import Picture, curves
from pipeline.evaluate.metrics import decibel
from pipeline.evaluate.reading import batches
from pipeline.evaluate.report import Findings, Table
from pipeline.evaluate.resampling import Estimate, IntArray, Units, bootstrap
from pipeline.evaluate.session import Session
from pipeline.shards.reader import Batch

_GUESSES = ("model", "mean", "nearest")


@dataclass(frozen=True)
class MaskedErrors:
    """Mean squared error over hidden tokens, in raw units squared, one value an example that has the modality."""

    model: np.ndarray  # [N]
    mean: np.ndarray  # of always answering the training mean
    nearest: np.ndarray  # of copying the nearest visible token along the flattening order
    sources: list[str]
    variance: float  # of the training data, mean over channels: what makes errors comparable between modalities


def reconstruction(session: Session) -> Findings:
    """Measure every mask ratio on the scored split; the masks are a function of (seed, example id)."""
    options = session.options
    metrics: dict[str, Estimate] = {}
    rows = []
    lines: dict[str, tuple[list[float], list[float]]] = {}
    for ratio in options.mask.ratios:
        for name, errors in masked_errors(session, ratio).items():
            peak = session.loaded.normalisations[name].peak_value()
            found = _estimates(session, errors, peak)
            for key, estimate in found.items():
                metrics[f"{key}/{name}/mask_{ratio:g}"] = estimate
            guesses = [decibel(float(getattr(errors, guess).mean()), peak) for guess in _GUESSES[1:]]
            rows.append((name, ratio, str(found["psnr"]), *guesses, found["error"].value))
            for label, value in zip((name, f"baseline mean, {name}", f"baseline nearest, {name}"),
                                    (found["psnr"].value, *guesses), strict=True):  # fmt: skip
                across, up = lines.setdefault(label, ([], []))
                across.append(ratio)
                up.append(value)
    columns = (
        "modality",
        "mask ratio",
        "PSNR, dB",
        "PSNR of the mean",
        "PSNR of the nearest visible",
        "error / variance",
    )
    pictures = _pictures(session, lines) if options.figures.enabled else []
    return Findings(metrics, [Table("Hidden tokens", columns, rows)], pictures, [_NOTE])


_NOTE = (
    "PSNR is over hidden tokens only, in raw units, relative to the peak-to-peak range of the stored type. "
    "error / variance is 1 for a model that always answers the training mean; below 1 something was learned."
)


def check_masks(session: Session) -> None:
    """Hold the mask of each ratio against the model's modalities.

    Raises:
        UserError: a policy that does not fit them.
    """
    options = session.options.mask
    for ratio in options.ratios:
        try:
            MaskConfig(options.policy, ratio).check(session.loaded.model.modalities)
        except ConfigError as error:
            raise UserError(f"mask.policy={options.policy}: {error}") from error


def masked_errors(session: Session, ratio: float) -> dict[str, MaskedErrors]:
    """Errors of the examples of the scored split that had something hidden at one mask ratio, by modality."""
    options, loaded = session.options, session.loaded
    config = MaskConfig(policy=options.mask.policy, ratio=ratio)
    autoencoder = MaskedAutoencoder(loaded.model, config, normalisation=loaded.normalisations)
    what = f"reconstructing at mask ratio {ratio:g}"
    collected: dict[str, list[np.ndarray]] = {name: [] for name in loaded.modality_names}
    sources: dict[str, list[str]] = {name: [] for name in loaded.modality_names}
    for batch in batches(session.reader(options.split), session.count(options.split), options.embed.batch_size, what):
        answer = reconstruct_batch(session, autoencoder, batch)
        for name in loaded.modality_names:
            hides = ~answer.visible[name].all(1).cpu().numpy()
            counts = batch.present[name] & hides
            collected[name].append(_batch_errors(session, answer, name)[counts])
            sources[name] += [batch.sources[row] for row in np.flatnonzero(counts)]
    found = {}
    for name, parts in collected.items():
        errors = np.concatenate(parts)
        if len(errors):
            variance = float(np.square(loaded.normalisations[name].std).mean())
            found[name] = MaskedErrors(errors[:, 0], errors[:, 1], errors[:, 2], sources[name], variance)
    return found


def reconstruct_batch(session: Session, autoencoder: MaskedAutoencoder, batch: Batch) -> Reconstruction:
    """One batch through the masked autoencoder, every token asked back."""
    device = session.loaded.device
    inputs = {n: torch.from_numpy(batch.arrays[n]).to(device) for n in session.loaded.modality_names}
    present = {n: torch.from_numpy(batch.present[n]).to(device) for n in session.loaded.modality_names}
    everything = all(bool(flags.all()) for flags in present.values())
    ids = torch.from_numpy(batch.example_ids).to(device)
    seeds = mask_seeds(session.options.seed, torch.zeros_like(ids), ids)
    return autoencoder.reconstruct(inputs, seeds, None if everything else present)


def nearest_visible(visible: Tensor) -> Tensor:
    """Index [B, T] of the nearest visible token along the sequence, itself where visible; 0 where nothing is."""
    length = visible.shape[1]
    index = torch.arange(length, device=visible.device).expand_as(visible)
    before = torch.where(visible, index, -length * 2).cummax(dim=1).values
    after = torch.where(visible, index, length * 3).flip(1).cummin(dim=1).values.flip(1)
    chosen = torch.where(index - before <= after - index, before, after)
    return chosen.clamp(0, length - 1)


def _batch_errors(session: Session, answer: Reconstruction, name: str) -> np.ndarray:
    """Mean squared error over hidden tokens of model, mean and nearest, [B, 3]; zeros where nothing is hidden."""
    raw, hidden = answer.raw[name].float(), ~answer.visible[name]
    mean = torch.tensor(session.loaded.normalisations[name].mean, device=raw.device)
    nearest = nearest_visible(answer.visible[name])[..., None].expand_as(raw)
    guesses = (answer.reconstruction[name], mean.expand_as(raw), raw.gather(1, nearest))
    count = hidden.sum(1).clamp_min(1)
    columns = [(((guess - raw) ** 2).mean(-1) * hidden).sum(1) / count for guess in guesses]
    return np.asarray(torch.stack(columns, 1).cpu().numpy())


def _estimates(session: Session, errors: MaskedErrors, peak: float) -> dict[str, Estimate]:
    options, units = session.options, Units(errors.sources)

    def estimate(score: Callable[[IntArray], float]) -> Estimate:
        return bootstrap(score, units, options.interval, options.seed)

    return {
        "psnr": estimate(lambda rows: decibel(float(errors.model[rows].mean()), peak)),
        "gain_over_mean": estimate(
            lambda rows: (
                decibel(float(errors.model[rows].mean()), peak) - decibel(float(errors.mean[rows].mean()), peak)
            )
        ),
        "error": estimate(lambda rows: float(errors.model[rows].mean()) / errors.variance),
    }


def _pictures(session: Session, lines: dict[str, tuple[list[float], list[float]]]) -> list[Picture]:
    from pipeline.evaluate.examples import example_pictures

    axis = ("mask ratio", "PSNR of hidden tokens, dB")
    return [curves("psnr", "PSNR by mask ratio", lines, axis), *example_pictures(session)]
