"""Segmentation by decoder queries: every pixel's position asks the decoder for a class (HiP paper, PASCAL VOC)."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import Tensor

from hip_model.heads import DenseHead
from pipeline.errors import UserError, nearest
from pipeline.evaluate.attention import on_picture
from pipeline.evaluate.figures import Picture, bars, picture_rows
from pipeline.evaluate.reading import Progress, batches
from pipeline.evaluate.report import Findings, Table
from pipeline.evaluate.resampling import IntArray, Units, bootstrap
from pipeline.evaluate.session import Session
from pipeline.ingest.spread import spread
from pipeline.seeding import derive_seed
from pipeline.shards.reader import Batch


def segmentation(session: Session) -> Findings:
    """Train a dense head on the fit split, score mean intersection over union on the other.

    ``segmentation.train=head`` freezes the model (a probe of its decoder); ``full`` fine-tunes a copy, like the paper.

    Raises:
        UserError: the model has no such picture, the data no such class map, the two are of different sizes, a class
            has no name, or no scored example has both.
    """
    options = session.options
    check_class_maps(session)
    head = _train(session)
    matrices, sources, shown = _score(session, head)
    units = Units(sources)
    names = session.label_names
    union = intersection_over_union(matrices.sum(0))
    metrics = {
        "mean_iou": bootstrap(lambda rows: _mean(matrices[rows]), units, options.interval, options.seed, 200),
        "pixel_accuracy": bootstrap(
            lambda rows: _pixel_accuracy(matrices[rows].sum(0)), units, options.interval, options.seed
        ),
    }
    rows = [(name, int(matrices[:, i].sum()), float(union[i])) for i, name in enumerate(names)]
    pictures = [bars("per_class", "IoU by class", dict(zip(names, union, strict=True)), "IoU"), *shown]
    note = f"Dense head trained for {options.segmentation.iterations} steps ({options.segmentation.train})."
    table = Table("By class", ("class", "pixels", "IoU"), rows)
    return Findings(metrics, [table], pictures if options.figures.enabled else [], [note])


def intersection_over_union(matrix: IntArray) -> np.ndarray:
    """IoU of each class [classes] from counts [true, predicted]; NaN for a class that occurs on neither side."""
    both = np.diag(matrix).astype(np.float64)
    either = matrix.sum(0) + matrix.sum(1) - both
    return np.divide(both, either, out=np.full(len(matrix), np.nan), where=either > 0)


def check_class_maps(session: Session) -> None:
    """Hold the class maps against the pictures.

    Raises:
        UserError: no such picture or map, maps of another size than the pictures, or classes without names.
    """
    wanted = session.options.segmentation
    specs = {spec.name: spec for spec in session.manifest.modalities}
    if wanted.images not in session.loaded.modality_names:
        raise UserError(
            f"segmentation.images={wanted.images!r}: {nearest(wanted.images, session.loaded.modality_names)}"
        )
    if wanted.labels not in specs:
        raise UserError(f"segmentation.labels={wanted.labels!r}: {nearest(wanted.labels, specs)}")
    images, labels = specs[wanted.images], specs[wanted.labels]
    if (images.shape, images.token_order) != (labels.shape, labels.token_order) or labels.num_channels != 1:
        raise UserError(
            f"class map {labels.shape} ({labels.token_order}, {labels.num_channels} channels) does not lie on the "
            f"picture {images.shape} ({images.token_order}); it needs the same shape and order, and 1 channel"
        )
    if not session.label_names:
        raise UserError("the dataset has no label names, so the classes of its maps are unknown")


def _train(session: Session) -> DenseHead:
    options, wanted = session.options, session.options.segmentation
    torch.manual_seed(derive_seed(options.seed, "segmentation"))
    head = DenseHead(copy.deepcopy(session.loaded.model), wanted.images, len(session.label_names))
    head = head.to(session.loaded.device)
    new = head.model.unembed[wanted.images]
    for parameter in head.parameters():
        parameter.requires_grad_(wanted.train == "full")
    for parameter in new.parameters():
        parameter.requires_grad_(True)
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=wanted.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, wanted.iterations)
    reader = session.reader(options.fit_split)
    usable = spread(session.count(options.fit_split), len(reader))
    random = np.random.default_rng(derive_seed(options.seed, "segmentation order"))
    progress = Progress("training the dense head", wanted.iterations, "steps")
    for _ in range(wanted.iterations):
        rows = random.choice(usable, min(options.embed.batch_size, len(usable)), replace=False)
        batch = reader.read(np.sort(rows))
        targets = _targets(session, batch)
        if bool((targets != wanted.ignore).any()):  # the mean over nothing is not a number
            loss = head.loss(_answers(session, head, batch), targets, wanted.ignore)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
        progress.advance(1)
    return head.eval()


def _answers(session: Session, head: DenseHead, batch: Batch) -> Tensor:
    """Scores [B, T, classes]."""
    answers: Tensor = head(session.loaded.normalise(batch.arrays), session.loaded.presence(batch.present))
    return answers[:, : head.model.group_plan()[head.modality].num_tokens]


def _targets(session: Session, batch: Batch) -> Tensor:
    """Classes [B, T]; of an example that lacks its picture or its class map, all count for nothing."""
    wanted = session.options.segmentation
    classes = batch.arrays[wanted.labels][..., 0].astype(np.int64)
    classes[~(batch.present[wanted.images] & batch.present[wanted.labels])] = wanted.ignore
    unknown = np.argwhere((classes != wanted.ignore) & ((classes < 0) | (classes >= len(session.label_names))))
    if len(unknown):
        row, token = unknown[0]
        raise UserError(
            f"{wanted.labels} of {batch.sources[row]!r} has class {classes[row, token]}, but the dataset names only "
            f"{len(session.label_names)} labels; where it counts for nothing: segmentation.ignore={classes[row, token]}"
        )
    return torch.from_numpy(classes).to(session.loaded.device)


@torch.inference_mode()
def _score(session: Session, head: DenseHead) -> tuple[IntArray, list[str], list[Picture]]:
    """Counts [images, true, predicted], the images' files, and a picture of the first examples."""
    options, classes = session.options, len(session.label_names)
    count, reader = session.count(options.split), session.reader(options.split)
    matrices: list[np.ndarray] = []
    sources: list[str] = []
    shown: list[list[np.ndarray]] = []
    for batch in batches(reader, count, options.embed.batch_size, "segmenting"):
        predicted, targets = _answers(session, head, batch).argmax(-1), _targets(session, batch)
        for row in range(len(targets)):
            valid = targets[row] != options.segmentation.ignore
            if not bool(valid.any()):
                continue
            pairs = targets[row][valid] * classes + predicted[row][valid]
            matrices.append(torch.bincount(pairs, minlength=classes**2).view(classes, classes).cpu().numpy())
            sources.append(batch.sources[row])
            if len(shown) < options.figures.examples:
                shown.append(_columns(session, batch, row, predicted[row]))
    if not matrices:
        raise UserError(f"split {options.split!r}: none of {count} examples has a picture and a class map")
    title = ("picture", "true classes", "predicted classes")
    return np.stack(matrices), sources, [picture_rows("segmentation", "Segmentation", title, shown, classes)]


def _columns(session: Session, batch: Batch, row: int, predicted: Tensor) -> list[np.ndarray]:
    modality = next(m for m in session.loaded.model.modalities if m.name == session.options.segmentation.images)
    image = on_picture(batch.arrays[modality.name][row], modality)
    truth = on_picture(batch.arrays[session.options.segmentation.labels][row], modality)[..., 0]
    return [image, truth, on_picture(predicted.cpu().numpy()[:, None], modality)[..., 0]]


def _mean(matrices: IntArray) -> float:
    found = intersection_over_union(matrices.sum(0))
    return float(np.nanmean(found)) if not np.isnan(found).all() else float("nan")


def _pixel_accuracy(matrix: IntArray) -> float:
    return float(np.diag(matrix).sum() / max(matrix.sum(), 1))
