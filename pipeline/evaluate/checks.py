"""Whether a task fits the model and the data: asked before anything is computed, written or tracked."""

from __future__ import annotations

from pipeline.errors import UserError
from pipeline.evaluate.classify import fitting_head
from pipeline.evaluate.probe import HOW_TO_LABEL
from pipeline.evaluate.reconstruct import check_masks
from pipeline.evaluate.retrieval import queried_modalities
from pipeline.evaluate.segmentation import check_class_maps
from pipeline.evaluate.session import Session
from pipeline.storage import redact

_FITTED = ("linear_probe", "knn", "segmentation")
_LABELLED = ("linear_probe", "knn", "classification", "multilabel")
_DECODED = ("reconstruction", "segmentation")


def check_task(session: Session) -> None:
    """Refuse what the task would refuse after it has read a split.

    Raises:
        UserError: a split, labels, modalities, masks, a block, a decoder or a head that is not there.
    """
    options, loaded = session.options, session.loaded
    fits = options.task in _FITTED or (options.task == "retrieval" and options.retrieval.align)
    for split in (options.split, *([options.fit_split] if fits else [])):
        session.manifest.shards_of(split)
    if options.task in _LABELLED and not session.label_names:
        raise UserError(f"{redact(options.shards)} has no labels; {HOW_TO_LABEL}")
    if options.task in _DECODED and not hasattr(loaded.model, "unembed"):
        raise UserError(f"task={options.task} needs a model with a decoder; {loaded.name} only classifies")
    session.level_choices()
    if options.task in ("classification", "multilabel"):
        fitting_head(session)
    elif options.task == "retrieval":
        queried_modalities(session)
    elif options.task == "segmentation":
        check_class_maps(session)
    elif options.task == "reconstruction":
        check_masks(session)
