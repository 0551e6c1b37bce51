"""Softmax attention inside groups, in the forms the model's shapes ask for; naive twin: ``naive_cross_attention``."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

# The score of a key nobody may look at: finite, so that a group with no key at all gives zeros and not NaN.
HIDDEN_SCORE = -1e30
# Widest head the fused backends of an accelerator take; beyond it they fall back to float32.
_WIDEST_FUSED_HEAD = 256


def grouped_attention(
    query: Tensor, key: Tensor, value: Tensor, heads: int, bias: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """Attention within each group, scores times ``scale`` (None: one over ``sqrt`` of the head width).

    ``query [B or 1, G, N, A]``, ``key [B, G, M, A]``, ``value [B, G, M, V]``, ``bias`` broadcasts to ``[B, G, N, M]``;
    returns ``[B, G, N, V]``, zeros where ``bias`` hides every key.
    """
    batch, groups = max(query.shape[0], key.shape[0]), query.shape[1]
    query = query.expand(batch, -1, -1, -1)
    mask = None if bias is None else bias.to(query.dtype)
    if groups == heads == 1:
        result = _attention(query, key, value, mask, scale)
    else:
        # Groups stand in the batch axis: SDPA lays results and gradients out token by token, all heads of one together,
        # and what reads them next would copy them (a tenth to a fifth of the layer's time on CPU).
        query, key, value = (_split_heads(part, heads) for part in (query, key, value))
        if mask is not None:
            mask = mask.expand(batch, groups, -1, -1).flatten(0, 1).unsqueeze(1)
        result = _attention(query, key, value, mask, scale)
        result = result.transpose(1, 2).reshape(batch, groups, query.shape[2], heads * value.shape[-1])
    return result if bias is None else result * any_key(bias).to(result.dtype)


def any_key(bias: Tensor) -> Tensor:
    """Whether a query has any key to look at: bool, ``bias``'s shape with a last axis of 1."""
    return (bias > HIDDEN_SCORE / 2).any(dim=-1, keepdim=True)


def explicit_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None = None
) -> Tensor:
    """``softmax(scale * query key' + mask) value`` in the inputs' own precision."""
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if mask is None else scores + mask
    return scores.softmax(dim=-1).to(value.dtype) @ value


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
    if query.is_cuda and query.shape[-1] > _WIDEST_FUSED_HEAD:
        return explicit_attention(query, key, value, mask, scale)
    return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    width = x.shape[-1] // heads
    return x.reshape(x.shape[0] * x.shape[1], x.shape[2], heads, width).transpose(1, 2)
