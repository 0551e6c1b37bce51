"""Pictures of an evaluation as PNG bytes: bars, curves, confusion, projections, attention."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Canvas

_INK, _ACCENT, _MUTED = "#1f2933", "#2a6f97", "#9aa5b1"


@dataclass(frozen=True)
class Picture:
    """One figure of a report."""

    name: str  # file name without ending
    title: str
    png: bytes
    caption: str = ""


def canvas(width_inches: float, height_inches: float) -> Canvas:
    """A blank figure outside pyplot's global state, so that threads and long runs leak nothing."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width_inches, height_inches), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Canvas) -> bytes:
    """The figure at 110 dots an inch."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110)
    return stream.getvalue()


def bars(name: str, title: str, values: Mapping[str, float], unit: str, limit: int = 40, caption: str = "") -> Picture:
    """Horizontal bars, highest first; beyond ``limit`` only the best and the worst are drawn."""
    ranked = sorted(((key, value) for key, value in values.items() if np.isfinite(value)), key=lambda item: -item[1])
    if len(ranked) > limit:
        caption = f"{caption} The {limit // 2} best and {limit // 2} worst of {len(ranked)}.".strip()
        ranked = ranked[: limit // 2] + ranked[-(limit // 2) :]
    figure = canvas(7, 0.9 + 0.24 * len(ranked))
    axes = figure.subplots()
    axes.barh([_short(key) for key, _ in ranked], [value for _, value in ranked], color=_ACCENT, height=0.7)
    axes.invert_yaxis()
    axes.set_xlabel(unit, color=_INK)
    axes.tick_params(labelsize=8, colors=_INK)
    _open_frame(axes)
    return Picture(name, title, png(figure), caption)


def curves(
    name: str, title: str, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], axis: tuple[str, str]
) -> Picture:
    """One line per key through its (x, y) points; keys that start with ``baseline`` are grey and broken."""
    figure = canvas(6.4, 3.6)
    axes = figure.subplots()
    dashes = cycle(("--", ":", "-."))
    for key, (across, up) in lines.items():
        dashed = key.startswith("baseline")
        style = next(dashes) if dashed else "o-"
        axes.plot(across, up, style, label=key, color=_MUTED if dashed else None, markersize=4)
    axes.set_xlabel(axis[0])
    axes.set_ylabel(axis[1])
    axes.legend(frameon=False, fontsize=8)
    _open_frame(axes)
    return Picture(name, title, png(figure))


def confusion_matrix(counts: np.ndarray, label_names: Sequence[str]) -> Picture:
    """Shares of each true class (rows) by predicted class (columns), with counts while they are readable."""
    shares = counts / np.clip(counts.sum(axis=1, keepdims=True), 1, None)
    size = min(10.0, 2.4 + 0.38 * len(label_names))
    figure = canvas(size, size)
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(label_names) <= 40:
        ticks = [_short(name, 18) for name in label_names]
        axes.set_xticks(range(len(ticks)), ticks, rotation=90, fontsize=7)
        axes.set_yticks(range(len(ticks)), ticks, fontsize=7)
    if len(label_names) <= 20:
        for row, column in np.argwhere(counts > 0):
            colour = "white" if shares[row, column] > 0.55 else _INK
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=6, color=colour)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    return Picture("confusion", "Confusion matrix", png(figure), "Colour: share of the true class. Numbers: examples.")


def projection(
    features: np.ndarray, classes: np.ndarray, label_names: Sequence[str], seed: int, limit: int = 1500
) -> Picture:
    """PCA and t-SNE of features [N, D], coloured by class [N] (negative: unlabelled, grey)."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    rows = np.random.default_rng(seed).permutation(len(features))[:limit]
    chosen, kinds = features[rows] - features.mean(0), classes[rows]
    chosen = chosen / np.where(features.std(0) > 1e-6, features.std(0), 1)
    width = min(50, *chosen.shape)
    components = PCA(n_components=width, random_state=seed).fit_transform(chosen)
    maps = [("PCA", components[:, :2])]
    distinct = len(np.unique(components.round(5), axis=0))
    if distinct >= 12:  # t-SNE crashes on points that are all one, which a collapsed model gives
        perplexity = min(30.0, (len(rows) - 1) / 4)
        nearby = TSNE(n_components=2, perplexity=perplexity, random_state=seed, init="pca", n_jobs=1)
        maps.append((f"t-SNE, perplexity {perplexity:.0f}", nearby.fit_transform(components)))
    figure = canvas(5.2 * len(maps), 4.6)
    for axes, (title, points) in zip(np.atleast_1d(figure.subplots(1, len(maps))), maps, strict=True):
        _scatter(axes, points, kinds, label_names)
        axes.set_title(title, fontsize=9)
    if len(label_names) <= 20:
        handles, names = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right center", frameon=False, fontsize=7)
    shown = f"{len(rows)} of {len(features)} examples, {distinct} of them different."
    return Picture("projection", "Embeddings by label", png(figure), shown)


def attention_maps(image: np.ndarray, levels: Sequence[tuple[str, np.ndarray]], index: int) -> Picture:
    """What latents look at: a picture [H, W, 3] (uint8) and, by level, attention per pixel [latents, H, W]."""
    columns = max(len(maps) for _, maps in levels)
    figure = canvas(1.5 * (columns + 1), 1.6 * len(levels))
    grid = figure.subplots(len(levels), columns + 1, squeeze=False)
    for row, (title, maps) in enumerate(levels):
        grid[row][0].imshow(image)
        grid[row][0].set_ylabel(title, fontsize=8)
        for column in range(columns):
            if column < len(maps):
                grid[row][column + 1].imshow(
                    maps[column], cmap="magma", vmin=0, vmax=max(float(maps[column].max()), 1e-9)
                )
    for axes in figure.axes:
        axes.set_xticks([])
        axes.set_yticks([])
    caption = "Each map: one latent's attention over pixels, multiplied down through the levels below it."
    return Picture(f"attention_{index}", "Attention of latents over pixels", png(figure), caption)


def picture_rows(
    name: str, title: str, columns: Sequence[str], rows: Sequence[Sequence[np.ndarray]], num_classes: int = 0
) -> Picture:
    """A grid of pictures: [H, W, 3] uint8 as they are, [H, W] as class numbers in ``num_classes`` colours."""
    figure = canvas(2.1 * len(columns), 2.1 * len(rows) + 0.3)
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, pictures in zip(grid, rows, strict=True):
        for axes, picture in zip(line, pictures, strict=True):
            if picture.ndim == 3:
                axes.imshow(picture)
            else:
                axes.imshow(picture, cmap="tab20", vmin=0, vmax=max(num_classes - 1, 1), interpolation="nearest")
            axes.set_axis_off()
    for axes, text in zip(grid[0], columns, strict=True):
        axes.set_title(text, fontsize=9)
    return Picture(name, title, png(figure))


def _scatter(axes: Any, points: np.ndarray, kinds: np.ndarray, label_names: Sequence[str]) -> None:
    import matplotlib

    colours = matplotlib.colormaps["tab20" if len(label_names) > 10 else "tab10"]
    if (kinds < 0).any():
        axes.scatter(*points[kinds < 0].T, s=6, color=_MUTED, label="unlabelled")
    for kind in np.unique(kinds[kinds >= 0]):
        axes.scatter(
            *points[kinds == kind].T, s=7, color=colours(int(kind) % colours.N), label=_short(label_names[kind])
        )
    axes.set_xticks([])
    axes.set_yticks([])


def _open_frame(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _short(text: object, limit: int = 28) -> str:
    # A dollar sign would start matplotlib's mathematics, which a label may not contain.
    plain = str(text).replace("$", r"\$")
    return plain if len(plain) <= limit else plain[: limit - 1] + "…"
