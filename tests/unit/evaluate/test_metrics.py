"""Metrics against hand-computed values and the libraries they stand for; intervals against known spreads."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluate import metrics
from pipeline.evaluate.options import IntervalOptions

INTERVAL = IntervalOptions(confidence=0.95, resamples=300)


def test_bootstrap_interval_has_the_width_of_the_normal_approximation():
    hits = (np.arange(400) < 300).astype(float)
    found = metrics.bootstrap_mean(hits, INTERVAL, seed=0)
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert found.value == 0.75
    assert found.high - found.value == pytest.approx(half, rel=0.25)
    assert found.value - found.low == pytest.approx(half, rel=0.25)
    assert found.count == 400


def test_bootstrap_is_a_function_of_the_seed():
    values = np.random.default_rng(0).normal(size=50)
    assert metrics.bootstrap_mean(values, INTERVAL, 3) == metrics.bootstrap_mean(values, INTERVAL, 3)


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
    found = metrics.classification_metrics(scores, labels, INTERVAL, 0)
    assert found["top1"].value == 0.8
    assert found["mean_class_accuracy"].value == 0.5
    assert "top5" not in found


def test_multilabel_metrics_agree_with_torchmetrics():
    import torch
    from torchmetrics.functional.classification import multilabel_auroc, multilabel_average_precision

    random = np.random.default_rng(2)
    targets = (random.uniform(size=(120, 4)) < 0.3).astype(np.int64)
    scores = np.clip(targets * 0.3 + random.uniform(size=targets.shape) * 0.7, 0, 1)
    found = metrics.multilabel_metrics(scores, targets, INTERVAL, 0)
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
    found = metrics.recall_at(np.array([0, 0, 3, 9]), (1, 5), INTERVAL, 0)
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
    found = metrics.bootstrap(lambda rows: float("nan") if rows[0] % 2 else 1.0, 10, INTERVAL, 0)
    assert (found.low, found.high) == (1.0, 1.0)
