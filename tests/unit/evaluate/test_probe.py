"""Probes on made-up features whose answer is known."""

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.evaluate.options import ProbeOptions
from pipeline.evaluate.probe import check_labels, fit_linear, is_multilabel, label_matrix, neighbour_scores

NAMES = ["a", "b", "c"]


def _blobs(count=150, seed=0):
    random = np.random.default_rng(seed)
    kinds = random.integers(0, 3, count)
    centres = np.array([[4.0, 0, 0, 100], [0, 4.0, 0, 100], [0, 0, 4.0, 100]])
    return (centres[kinds] + random.normal(size=(count, 4))).astype(np.float32), kinds


def test_linear_probe_separates_what_is_separable_and_its_head_says_the_same():
    features, kinds = _blobs()
    probe = fit_linear(features, [(int(k),) for k in kinds], NAMES, 2, ProbeOptions(), seed=0)
    test, truth = _blobs(seed=1)
    predicted = probe.head.scores(torch.from_numpy(test)).argmax(1).numpy()
    assert (predicted == truth).mean() > 0.93
    assert (probe.head.task, probe.head.level) == ("classification", 2)
    assert probe.held_out_score > 0.9


def test_a_class_that_fitting_never_saw_is_never_predicted():
    features, kinds = _blobs()
    kept = kinds < 2
    probe = fit_linear(features[kept], [(int(k),) for k in kinds[kept]], NAMES, 0, ProbeOptions(), seed=0)
    predicted = probe.head.scores(torch.from_numpy(features)).argmax(1).numpy()
    assert set(predicted) == {0, 1}
    assert (predicted[kept] == kinds[kept]).mean() > 0.9


def test_several_labels_make_a_multilabel_head():
    random = np.random.default_rng(0)
    features = random.normal(size=(200, 3)).astype(np.float32)
    labels = [tuple(int(i) for i in np.flatnonzero(row > 0)) for row in features]
    assert is_multilabel(labels)
    probe = fit_linear(features, labels, NAMES, 0, ProbeOptions(), seed=0)
    assert probe.head.task == "multilabel"
    predicted = probe.head.probabilities(torch.from_numpy(features)).numpy() > 0.5
    assert (predicted == (label_matrix(labels, 3) > 0)).mean() > 0.95


def test_neighbours_vote_by_similarity():
    features, kinds = _blobs()
    test, truth = _blobs(seed=1)
    scores = neighbour_scores(features, label_matrix([(int(k),) for k in kinds], 3), test, 10)
    np.testing.assert_allclose(scores.sum(1), 1.0, rtol=1e-6)
    assert (scores.argmax(1) == truth).mean() > 0.9


def test_unlabelled_and_unknown_labels_are_refused_by_name():
    with pytest.raises(UserError, match="'train' has no labels"):
        check_labels([(), ()], NAMES, "train")
    with pytest.raises(UserError, match="label number 3"):
        check_labels([(0,), (3,)], NAMES, "train")
