"""Probes on made-up features whose answer is known."""

import numpy as np
import pytest
import torch

from pipeline.errors import UserError
from pipeline.evaluate.embed import Embeddings
from pipeline.evaluate.options import ProbeOptions
from pipeline.evaluate.probe import (
    check_labels,
    fit_linear,
    held_out_parts,
    is_multilabel,
    label_matrix,
    neighbour_scores,
)

NAMES = ["a", "b", "c"]


def _embeddings(features, labels, sources=None) -> Embeddings:
    """One level whose only pooled part is ``features``."""
    rows = range(len(features))
    return Embeddings(
        levels=[{"mean": features, "std": features[:, :0], "groups": features}],
        labels=labels,
        sources=sources or [f"{row}.mp4" for row in rows],
        start_seconds=np.zeros(len(features)),
        example_ids=np.arange(len(features)),
        present={},
    )


def _single(kinds) -> list[tuple[int, ...]]:
    return [(int(kind),) for kind in kinds]


def _blobs(count=150, seed=0):
    random = np.random.default_rng(seed)
    kinds = random.integers(0, 3, count)
    centres = np.array([[4.0, 0, 0, 100], [0, 4.0, 0, 100], [0, 0, 4.0, 100]])
    return (centres[kinds] + random.normal(size=(count, 4))).astype(np.float32), kinds


def test_linear_probe_separates_what_is_separable_and_its_head_says_the_same():
    features, kinds = _blobs()
    probe = fit_linear(_embeddings(features, _single(kinds)), NAMES, (0,), ProbeOptions(), seed=0)
    test, truth = _blobs(seed=1)
    predicted = probe.head.scores(torch.from_numpy(test)).argmax(1).numpy()
    assert (predicted == truth).mean() > 0.93
    assert (probe.head.task, probe.head.levels, probe.head.pool) == ("classification", (0,), "groups")
    assert probe.held_out_score > 0.9


def test_a_class_that_fitting_never_saw_is_never_predicted():
    features, kinds = _blobs()
    kept = kinds < 2
    probe = fit_linear(_embeddings(features[kept], _single(kinds[kept])), NAMES, (0,), ProbeOptions(), seed=0)
    predicted = probe.head.scores(torch.from_numpy(features)).argmax(1).numpy()
    assert set(predicted) == {0, 1}
    assert (predicted[kept] == kinds[kept]).mean() > 0.9


def test_several_labels_make_a_multilabel_head():
    random = np.random.default_rng(0)
    features = random.normal(size=(200, 3)).astype(np.float32)
    labels = [tuple(int(i) for i in np.flatnonzero(row > 0)) for row in features]
    assert is_multilabel(labels)
    probe = fit_linear(_embeddings(features, labels), NAMES, (0,), ProbeOptions(), seed=0)
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


def test_held_out_parts_keep_files_whole_and_every_class_in_each():
    kinds = np.repeat(np.arange(3), 20)
    sources = [f"clip_{row // 2}.mp4" for row in range(60)]  # two windows a file
    parts = held_out_parts(label_matrix(_single(kinds), 3), sources, 5, seed=0)
    assert sorted(np.concatenate(parts)) == list(range(60))
    for held in parts:
        rest = {sources[row] for row in range(60) if row not in set(held)}
        assert not rest & {sources[row] for row in held}
        assert set(kinds[held]) == {0, 1, 2}


def test_few_files_make_few_parts_and_one_file_a_class_none():
    kinds = np.repeat(np.arange(3), 4)
    targets = label_matrix(_single(kinds), 3)
    assert len(held_out_parts(targets, [f"{row // 2}.mp4" for row in range(12)], 5, seed=0)) == 2
    assert held_out_parts(targets, [f"{row // 4}.mp4" for row in range(12)], 5, seed=0) == []
    lone = _embeddings(np.eye(12, dtype=np.float32), _single(kinds), [f"{row // 4}.mp4" for row in range(12)])
    probe = fit_linear(lone, NAMES, (0,), ProbeOptions(strengths=(1.0, 0.1, 0.01)), seed=0)
    assert (probe.strength, probe.folds) == (0.1, 0)


def test_more_noise_columns_than_examples_choose_a_strong_penalty_and_still_find_the_class():
    """What a probe of a hierarchy's latents on a few dozen clips is like."""
    random = np.random.default_rng(3)
    kinds = np.arange(64) % 4
    columns = random.normal(size=(128, 600)).astype(np.float32)
    columns[:64, :40] += 1.2 * np.eye(4)[kinds].repeat(10, 1)
    columns[64:, :40] += 1.2 * np.eye(4)[kinds].repeat(10, 1)
    probe = fit_linear(_embeddings(columns[:64], _single(kinds)), [*NAMES, "d"], (0,), ProbeOptions(), seed=0)
    predicted = probe.head.scores(torch.from_numpy(columns[64:])).argmax(1).numpy()
    assert (predicted == kinds).mean() > 0.7
