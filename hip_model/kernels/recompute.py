"""Trading time for memory: parts of the forward pass that the backward pass does again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def recomputed(function: Callable[..., Any], *arguments: Any, keep: bool) -> Any:
    """Call ``function``, which draws no random numbers; unless ``keep``, the backward pass makes its results again."""
    if keep or not torch.is_grad_enabled():
        return function(*arguments)
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
