"""Metrics against hand-computed values and the libraries they stand for; intervals against known spreads."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluate import metrics
from pipeline.evaluate.areas import per_class_average_precision, per_class_roc_area, resampled_areas
from pipeline.evaluate.options import IntervalOptions
from pipeline.evaluate.resampling import (
    Units,
    bootstrap,
    bootstrap_mean,
    difference_margin,
    resamples_to_bytes,
    with_resamples,
)

INTERVAL = IntervalOptions(confidence=0.95, resamples=300)


def files(count: int, windows: int = 1) -> Units:
    """So many files with as many windows each."""
    return Units([f"{index}.mp4" for index in range(count) for _ in range(windows)])


def test_bootstrap_interval_has_the_width_of_the_normal_approximation():
    hits = (np.arange(400) < 300).astype(float)
    found = bootstrap_mean(hits, files(400), INTERVAL, seed=0)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert found.value == 0.75
    assert found.high - found.value == pytest.approx(half, rel=0.25)
    assert found.value - found.low == pytest.approx(half, rel=0.25)
    assert found.count == 400


def test_bootstrap_is_a_function_of_the_seed():
    values = np.random.default_rng(0).normal(size=50)
    assert bootstrap_mean(values, files(50), INTERVAL, 3) == bootstrap_mean(values, files(50), INTERVAL, 3)


def test_windows_of_a_file_are_resampled_together():
    """Copies of what a file says bring no certainty: the interval is that of one window a file."""
    hits = (np.arange(50) < 30).astype(float)
    alone = bootstrap_mean(hits, files(50), INTERVAL, 0)
    copied = bootstrap_mean(np.repeat(hits, 20), files(50, windows=20), INTERVAL, 0)
    assert (copied.low, copied.high, copied.count) == pytest.approx((alone.low, alone.high, 50))


def psnr_like(seed: int, difficulty: np.ndarray, gain: float) -> np.ndarray:
    """One model's value of each file: mostly how hard the file is, a little the model."""
    return difficulty + gain + np.random.default_rng(seed).normal(scale=0.3, size=len(difficulty))


def test_the_margin_between_two_models_on_the_same_files_holds_the_true_difference():
    """A nominal 95 %: what makes a file hard for both cancels, so the margin is a tenth of that of other files."""
    held, narrower = 0, []
    for trial in range(100):
        difficulty = np.random.default_rng(1000 + trial).normal(20, 3, size=80)
        mine = bootstrap_mean(psnr_like(2 * trial, difficulty, 0.2), files(80), INTERVAL, 0)
        theirs = bootstrap_mean(psnr_like(2 * trial + 1, difficulty, 0.0), files(80), INTERVAL, 0)
        margin, paired = difference_margin(mine, theirs)
        assert paired
        held += abs(mine.value - theirs.value - 0.2) <= margin
        narrower.append(margin / difference_margin(mine, replace(theirs, resamples=None))[0])
    assert 88 <= held <= 99
    assert np.median(narrower) < 0.15


def test_only_the_same_resamples_are_paired():
    values = np.random.default_rng(0).normal(size=30)
    one = bootstrap_mean(values, files(30), INTERVAL, 0)
    apart = [
        bootstrap_mean(values, files(30), INTERVAL, 1),
        bootstrap_mean(values, Units([f"other{index}.mp4" for index in range(30)]), INTERVAL, 0),
        bootstrap_mean(values, files(30), IntervalOptions(confidence=0.9, resamples=300), 0),
        bootstrap_mean(values, files(30), IntervalOptions(confidence=0.95, resamples=200), 0),
        replace(one, resamples=None),
    ]
    for other in apart:
        margin, paired = difference_margin(one, other)
        assert not paired
        assert margin == pytest.approx(np.hypot(one.high - one.low, other.high - other.low) / 2)
    assert difference_margin(one, bootstrap_mean(values, files(30), INTERVAL, 0)) == (0.0, True)


def test_resamples_survive_a_file_and_stay_with_their_own_value():
    values = np.random.default_rng(0).normal(size=30)
    found = {"a/psnr": bootstrap_mean(values, files(30), INTERVAL, 0), "chance": metrics.Estimate(0.5, 0.5, 0.5, 30)}
    bare = {name: replace(entry, resamples=None) for name, entry in found.items()}
    content = resamples_to_bytes(found)
    read = with_resamples(bare, content)
    assert difference_margin(read["a/psnr"], found["a/psnr"]) == (0.0, True)
    assert read["chance"].resamples is None
    moved = {"a/psnr": replace(bare["a/psnr"], value=bare["a/psnr"].value + 1e-9), "new": bare["chance"]}
    assert all(entry.resamples is None for entry in with_resamples(moved, content).values())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(0, 100))
def test_a_draw_holds_whole_files(numbers: list[int], seed: int):
    sources = np.array([f"{number}.mp4" for number in numbers])
    units = Units(list(sources))
    rows = units.draw(np.random.default_rng(seed))
    if len(set(numbers)) == 1:
        assert (len(units), len(rows)) == (len(numbers), len(numbers))
        return
    times = np.bincount(rows, minlength=len(numbers))
    by_file = [set(times[sources == source]) for source in set(sources)]
    assert all(len(found) == 1 for found in by_file), "every window of a file as often as the others"
    assert sum(found.pop() for found in by_file) == len(units) == len(set(numbers))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 3), st.sampled_from([1, 4, 1000]))
def test_resampled_areas_are_those_of_the_resampled_examples(seed: int, count: int, classes: int, distinct: int):
    """Few distinct scores: ties; few examples: classes that nobody, or everybody, has."""
    random = np.random.default_rng(seed)
    scores = random.integers(0, distinct, (count, classes)) / distinct
    targets = (random.random((count, classes)) < 0.4).astype(np.int64)
    draws = [random.integers(0, count, count) for _ in range(5)]
    times = np.stack([np.bincount(draw, minlength=count) for draw in draws], axis=1).astype(np.int32)
    precision, roc = resampled_areas(scores, targets, times)
    for row, draw in enumerate(draws):
        expected = per_class_average_precision(scores[draw], targets[draw])
        np.testing.assert_allclose(precision[row], expected, atol=1e-9)
        np.testing.assert_allclose(roc[row], per_class_roc_area(scores[draw], targets[draw]), atol=1e-9)


def test_top_k_agrees_with_torchmetrics():
    import torch
    from torchmetrics.functional.classification import multiclass_accuracy

    random = np.random.default_rng(1)
    scores, labels = random.normal(size=(200, 9)), random.integers(0, 9, 200)
    for k in (1, 3, 5):
        theirs = multiclass_accuracy(torch.tensor(scores), torch.tensor(labels), 9, average="micro", top_k=k)
        assert metrics.top_k_hits(scores, labels, k).mean() == pytest.approx(float(theirs))


def test_classification_counts_classes_equally_in_mean_class_accuracy():
    scores = np.zeros((10, 2))
    scores[:, 0] = 1  # always class 0
    labels = np.array([0] * 8 + [1] * 2)
    found = metrics.classification_metrics(scores, labels, files(10), INTERVAL, 0)
    assert found["top1"].value == 0.8
    assert found["mean_class_accuracy"].value == 0.5
    assert "top5" not in found


def test_windows_of_a_file_vote_together():
    """Three files of three windows: the second is right in one window only, but that one is sure."""
    scores = np.array([[0.9, 0.1]] * 3 + [[0.55, 0.45], [0.0, 1.0], [0.6, 0.4]] + [[0.3, 0.7]] * 3)
    sources = [name for name in "abc" for _ in range(3)]
    labels = np.array([0] * 3 + [1] * 3 + [0] * 3)
    found = metrics.clip_metrics(scores, labels, sources, INTERVAL, 0)
    assert list(found) == ["clip_top1"]
    assert (found["clip_top1"].value, found["clip_top1"].count) == (pytest.approx(2 / 3), 3)
    assert metrics.clip_metrics(scores, labels, list("abcdefghi"), INTERVAL, 0) == {}  # a window each
    labels[0] = 1
    assert metrics.clip_metrics(scores, labels, sources, INTERVAL, 0) == {}  # no label of the whole file


def test_multilabel_metrics_agree_with_torchmetrics():
    import torch
    from torchmetrics.functional.classification import multilabel_auroc, multilabel_average_precision

    random = np.random.default_rng(2)
    targets = (random.uniform(size=(120, 4)) < 0.3).astype(np.int64)
    scores = np.clip(targets * 0.3 + random.uniform(size=targets.shape) * 0.7, 0, 1)
    found = metrics.multilabel_metrics(scores, targets, files(len(scores)), INTERVAL, 0)
    s, t = torch.tensor(scores), torch.tensor(targets)
    assert found["mean_average_precision"].value == pytest.approx(
        float(multilabel_average_precision(s, t, 4)), abs=1e-6
    )
    assert found["roc_area"].value == pytest.approx(float(multilabel_auroc(s, t, 4)), abs=1e-6)
    assert (
        found["mean_average_precision"].low
        < found["mean_average_precision"].value
        < found["mean_average_precision"].high
    )


def test_the_interval_of_average_precision_holds_its_value_where_classes_are_rare():
    """Repeated examples raise average precision, so quantiles of resamples alone lie above what was measured."""
    random = np.random.default_rng(0)
    scores, targets = random.normal(size=(600, 200)), (random.random((600, 200)) < 0.01).astype(np.int64)
    found = metrics.multilabel_metrics(scores, targets, files(len(scores)), INTERVAL, 0)["mean_average_precision"]
    assert found.low < found.value < found.high


def test_d_prime_is_the_audioset_definition():
    assert metrics.d_prime(0.5) == pytest.approx(0.0, abs=1e-9)
    assert metrics.d_prime(0.975) == pytest.approx(2.772, abs=1e-3)  # sqrt(2) * 1.95996


def test_clip_scores_are_means_over_windows_and_labels_are_joined():
    scores = np.array([[0.2, 0.0], [0.6, 1.0], [0.5, 0.5]])
    targets = np.array([[1, 0], [0, 1], [1, 0]])
    found, joined, clips = metrics.average_by_clip(scores, targets, ["a", "b", "a"])
    assert clips == ["a", "b"]
    np.testing.assert_allclose(found, [[0.35, 0.25], [0.6, 1.0]])
    np.testing.assert_array_equal(joined, [[1, 0], [0, 1]])


def test_recall_from_ranks():
    found = metrics.recall_at(np.array([0, 0, 3, 9]), (1, 5), files(4), INTERVAL, 0)
    assert found["recall_at_1"].value == 0.5
    assert found["recall_at_5"].value == 0.75
    assert found["median_rank"].value == 2.5


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-3, 1e4), st.floats(1.0, 1e5))
def test_decibel_halving_the_error_adds_three(error: float, peak: float):
    assert metrics.decibel(error / 2, peak) - metrics.decibel(error, peak) == pytest.approx(3.0103, abs=1e-3) or (
        error < 1e-11 * peak**2
    )


def test_undefined_resamples_do_not_poison_the_interval():
    found = bootstrap(lambda rows: float("nan") if rows[0] % 2 else 1.0, files(10), INTERVAL, 0)
    assert (found.low, found.high) == (1.0, 1.0)
