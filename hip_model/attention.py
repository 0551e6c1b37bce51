"""The two layers of a HiP block: cross-attention onto latents and self-attention between them, inside groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from hip_model.init import Linear
from hip_model.kernels.attention import HIDDEN_SCORE, any_key, grouped_attention
from hip_model.kernels.device import is_whole
from hip_model.kernels.mlp_rows import mlp_rows
from hip_model.kernels.recompute import recomputed
from hip_model.kernels.rows_linear import can_map_rows
from hip_model.kernels.self_attend import can_self_attend, self_attend
from hip_model.norm import NORM_EPSILON, LayerNorm, Residual


@dataclass(frozen=True)
class Keys:
    """What some consecutive groups look at: ``values [B, g, l, C]`` and what is added to their scores.

    ``bias`` broadcasts to ``[B, g, queries, l]``: 0 for an ordinary key, ``log n`` for one that stands for ``n`` equal
    ones, ``HIDDEN_SCORE`` for a key that is not there. Queries that see no key at all get zeros from attention.
    """

    values: Tensor
    bias: Tensor | None = None

    @property
    def batch(self) -> int:
        """Examples, ``B``."""
        return self.values.shape[0]

    @property
    def groups(self) -> int:
        """Groups here, ``g``."""
        return self.values.shape[1]

    @property
    def per_group(self) -> int:
        """Keys of each group, ``l``."""
        return self.values.shape[2]

    @property
    def recompute(self) -> bool:
        """Never: these are kept already."""
        return False

    @property
    def pixels(self) -> PixelSource | None:
        """None: these are embedded already."""
        return None

    def build(self) -> Keys:
        """Themselves: they are built already."""
        return self


class PixelSource(Protocol):
    """Keys that latents can look at without their being built: see ``hip_model.pixels``."""

    def fits(self, queries: Tensor, norm: nn.LayerNorm) -> bool:
        """Whether these queries and this norm of the keys can be taken."""

    def attend(self, queries: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor | None]:
        """Queries over the normed keys, and whether each saw any."""


@dataclass(frozen=True)
class LazyKeys:
    """Keys of ``groups`` groups, about ``per_group`` each, made when attention gets to them.

    ``recompute``: made again in the backward pass instead of being kept.
    """

    batch: int
    groups: int
    per_group: int
    build: Callable[[], Keys]
    recompute: bool
    pixels: PixelSource | None = None
    """The same keys before they are embedded, where one pass over them is possible."""


def hidden_scores(empty: Tensor) -> Tensor:
    """``[B, g, v]`` empty slots as the bias of keys, ``[B, g, 1, v]``."""
    scores = torch.zeros(empty.shape, device=empty.device)
    return scores.masked_fill(empty, HIDDEN_SCORE).unsqueeze(2)


class MLP(nn.Module):
    """``C -> widening * C``, squared ReLU, back to ``C``."""

    def __init__(self, channels: int, widening: int) -> None:
        super().__init__()
        self.hidden = Linear(channels, widening * channels)
        self.output = Linear(widening * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., C]`` to ``[..., C]``."""
        return self.output(self.hidden(x), after_squared_relu=True)

    def branch(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What ``forward`` gives, or that before its last bias, and the bias."""
        parts = (self.hidden.weight, self.hidden.bias, self.output.weight)
        if can_map_rows(x, self.hidden.weight) and is_whole(*parts, self.output.bias):
            return mlp_rows(x, *parts), self.output.bias
        return self(x), None


class QueryNorm(LayerNorm):
    """The layer norm of queries, ``x^ * weight + bias``; its two factors can be moved onto the keys.

    A normed row ``x^`` sums to zero, so of its ``D`` directions one is free: with ``1`` added to every entry of the
    query and ``s / D`` to every entry of a key whose own entries sum to zero, the product gains exactly ``s``. Scores
    that belong to keys thus ride along in the plain product, and any attention kernel will do.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, x: Tensor, *, scores: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Queries ``[..., D]`` normed; with ``scores [...]``, ``x`` are keys: those for queries of ``bare``."""
        if scores is None:
            return super().forward(x)  # type: ignore[return-value]
        weighted = x * self.weight
        scores = scores + (x * self.bias).sum(dim=-1)
        return weighted + (scores / x.shape[-1] - weighted.mean(dim=-1)).unsqueeze(-1)

    def bare(self, x: Tensor) -> Tensor:
        """``x^ + 1``: queries for keys that carry weight, bias and scores. Uses no parameter."""
        ones = torch.ones(x.shape[-1], dtype=x.dtype, device=x.device)
        return layer_norm(x, (x.shape[-1],), None, ones, NORM_EPSILON)


class CrossAttention(nn.Module):
    """Queries look at keys, group by group, then an MLP. The inner width is the keys' width.

    Only queries and keys are per group; every weight is shared by all groups.
    """

    def __init__(
        self,
        query_channels: int,
        key_channels: int,
        heads: int,
        widening: int,
        *,
        skip_channels: int | None = None,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.residual = residual
        self.query_norm = QueryNorm(query_channels)
        self.key_norm = LayerNorm(key_channels)
        self.mlp_norm = LayerNorm(query_channels)
        self.query = Linear(query_channels, key_channels)
        self.key = Linear(key_channels, key_channels)
        self.value = Linear(key_channels, key_channels)
        self.output = Linear(key_channels, query_channels)
        self.mlp = MLP(query_channels, widening)
        needs_map = skip_channels is not None and skip_channels != query_channels
        self.skip = Linear(skip_channels, query_channels) if needs_map and skip_channels else None

    def forward(
        self,
        queries: Tensor,
        keys: Sequence[Keys | LazyKeys],
        skip: Tensor | None = None,
        *,
        keep_residual: bool = False,
    ) -> Tensor | Residual:
        """``queries [B or 1, G, N, D]`` over ``keys``, which cover the groups in order, plus ``skip [B, G, N, D']``.

        Returns ``[B, G, N, D]``; with ``keep_residual`` its last sum is left to the norm that reads it.
        """
        if skip is not None:
            queries = queries + (skip if self.skip is None else self.skip(skip))
        result, normed = self.mlp_norm(self._attend(queries, keys), queries if self.residual else None, keep_sum=True)
        residual = Residual(result, *self.mlp.branch(normed))
        return residual if keep_residual else residual.total()

    def _attend(self, queries: Tensor, keys: Sequence[Keys | LazyKeys]) -> Tensor:
        """Attention and its output map by the cheapest of three forms that give the same result."""
        form = self._cheapest_form(queries, max(part.per_group for part in keys))
        if form == "folded_into_keys":
            return self._by_part(self._attend_folded_into_keys, self.query_norm.bare(queries), keys)
        projected = self.query(self.query_norm(queries))
        if form == "folded_into_queries":
            folded, constant = self.key(projected, transposed=True)
            # Equal for all scores of a query, so it drops out of the softmax; zero times it keeps the bias's gradient.
            projected = folded + 0.0 * constant.unsqueeze(-1)
            return self.output(self._by_part(self._attend_folded_into_queries, projected, keys))
        return self.output(self._by_part(self._attend_plainly, projected, keys))

    def _cheapest_form(self, queries: Tensor, num_keys: int) -> str:
        """Which form needs the fewest multiplications per group and example."""
        if self.heads > 1:
            return "plain"
        num_queries, width, inner = queries.shape[2], self.query.in_features, self.key.in_features
        # Queries without a batch axis are projected once for all examples: as good as free.
        per_query = 0 if queries.shape[0] == 1 else num_queries
        score, latents = 2 * num_queries * num_keys, num_queries * inner * width
        costs = {
            "plain": per_query * width * inner + 2 * num_keys * inner**2 + score * inner + latents,
            "folded_into_queries": per_query * (width + inner) * inner
            + num_queries * inner**2
            + score * inner
            + latents,
            "folded_into_keys": 2 * num_keys * inner * (inner + width) + score * width,
        }
        return min(costs, key=lambda form: costs[form])

    def _by_part(
        self, attend: Callable[[Tensor, Keys | LazyKeys], Tensor], queries: Tensor, keys: Sequence[Keys | LazyKeys]
    ) -> Tensor:
        if len(keys) == 1:
            return recomputed(attend, queries, keys[0], keep=not keys[0].recompute)
        # split, not slices: its gradient is one concatenation.
        shares = queries.split([part.groups for part in keys], dim=1)
        results = [
            recomputed(attend, share, part, keep=not part.recompute) for share, part in zip(shares, keys, strict=True)
        ]
        return torch.cat(results, dim=1)

    def _attend_plainly(self, projected: Tensor, part: Keys | LazyKeys) -> Tensor:
        keys = part.build()
        values = self.key_norm(keys.values)
        return grouped_attention(projected, self.key(values), self.value(values), self.heads, keys.bias)

    def _attend_folded_into_queries(self, projected: Tensor, part: Keys | LazyKeys) -> Tensor:
        """Keys and values are the normed tokens: ``q . W_k y = (q W_k) . y`` and ``sum p W_v y = W_v sum p y``."""
        if part.pixels is not None and part.pixels.fits(projected, self.key_norm):
            attended, seen = part.pixels.attend(projected, self.key_norm)
            result = self.value(attended)
            return result if seen is None else result * seen.to(result.dtype)
        keys = part.build()
        values = self.key_norm(keys.values)
        result = self.value(grouped_attention(projected, values, values, 1, keys.bias))
        return result if keys.bias is None else result * any_key(keys.bias).to(result.dtype)

    def _attend_folded_into_keys(self, queries: Tensor, part: Keys | LazyKeys) -> Tensor:
        """Queries are the normed latents or position codes themselves; all four projections act on the (few) keys."""
        keys = part.build()
        folded, answers = self.fold_into_keys(self.key_norm(keys.values))
        result = grouped_attention(queries, folded, answers, 1, keys.bias, scale=1.0)
        if keys.bias is None:
            return result
        # Zeros before the output map come out as its bias.
        nothing = self.output(answers.new_zeros(1, 1, 1, self.output.in_features))
        return torch.where(any_key(keys.bias), result, nothing.to(result.dtype))

    def fold_into_keys(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Normed keys ``[B, G, n, C]`` to what ``query_norm.bare`` queries meet, and what they then answer with."""
        folded, scores = self.query(self.key(values), transposed=True)
        folded = self.query_norm(folded, scores=scores) * self.key.in_features**-0.5
        return folded, self.output(self.value(values))


class SelfAttention(nn.Module):
    """Latents of a group look at each other, then an MLP; dropout and stochastic depth act on both branches."""

    def __init__(self, channels: int, heads: int, widening: int, dropout: float, drop_path: float) -> None:
        super().__init__()
        self.heads = heads
        self.drop_path = drop_path
        self.attention_norm = LayerNorm(channels)
        self.mlp_norm = LayerNorm(channels)
        self.query = Linear(channels, channels)
        self.key = Linear(channels, channels)
        self.value = Linear(channels, channels)
        self.output = Linear(channels, channels)
        self.mlp = MLP(channels, widening)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor | Residual) -> Tensor | Residual:
        """``[B, G, N, D] -> [B, G, N, D]``; a residual comes back as one, its last sum left to the next norm."""
        given = x if isinstance(x, Residual) else Residual(x)
        total, normed = self.attention_norm(*given, keep_sum=True)
        total, normed = self.mlp_norm(total, *self._drop(*self._attend(normed)), keep_sum=True)
        residual = Residual(total, *self._drop(*self.mlp.branch(normed)))
        return residual if isinstance(x, Residual) else residual.total()

    def _attend(self, normed: Tensor) -> tuple[Tensor, Tensor | None]:
        """Attention and its output map, or that before its bias, and the bias."""
        maps = (self.query, self.key, self.value)
        weights, biases = [part.weight for part in maps], [part.bias for part in maps]
        output = self.output
        if can_self_attend(normed, weights, self.heads) and is_whole(*weights, *biases, output.weight, output.bias):
            return linear(self_attend(normed, weights, biases, self.heads), output.weight), output.bias
        query, key, value = (part(normed) for part in maps)
        return output(grouped_attention(query, key, value, self.heads)), None

    def _drop(self, branch: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        if not self.training or (self.dropout.p == 0.0 and self.drop_path == 0.0):
            return branch, bias
        branch = self.dropout(branch if bias is None else branch + bias)
        if self.drop_path == 0.0:
            return branch, None
        # One draw per example; kept branches are not rescaled (as in the original).
        kept = torch.rand(branch.shape[0], 1, 1, 1, device=branch.device) >= self.drop_path
        return branch * kept.to(branch.dtype), None
