"""Which tokens of each group enter the model, and which are asked back from it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

EMPTY_SLOT = -1


@dataclass(frozen=True)
class TokenSelection:
    """Positions inside groups, per modality, ascending, with ``EMPTY_SLOT`` (-1) filling unused slots at the end.

    ``visible[name]`` and ``queries[name]`` are integer tensors ``[batch, groups, slots]``. ``groups`` are those the
    modality owns, and a value ``i`` in group ``g`` is its token ``g * group_tokens + i`` (``group_tokens`` =
    ``ceil(num_tokens / groups)``). Values past the modality's last token count as empty. The batch axis may be 1 (one
    selection for the batch) and the group axis may be 1 (one pattern for all groups, the paper's group-wise mask).

    ``has_empty_slots`` may be set False where no slot of any modality is empty: attention then needs no mask. It is a
    promise about values made by whoever built the selection; reading it off the tensors would stall the device.
    """

    visible: dict[str, Tensor]
    queries: dict[str, Tensor]
    has_empty_slots: bool = True
