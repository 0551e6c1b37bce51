"""``init`` in the options of a verb: from whatever names a model to the folder on this machine that holds it."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from pipeline.evaluate.finetune_options import FinetuneOptions
from pipeline.train.options import PretrainOptions

Options = TypeVar("Options", bound=PretrainOptions | FinetuneOptions)


def with_init_found(options: Options) -> Options:
    """The same options with ``init`` as a folder; unchanged where there is none.

    Raises:
        UserError: nothing is there; the message names what is near.
    """
    if options.init is None:
        return options
    from pipeline.registry.resolve import resolve_model

    return replace(options, init=str(resolve_model(options.init, options.storage, options.tracking, key="init")))
