"""Metrics against values worked out by hand."""

import math

import numpy as np
import pytest

from sparse_pretrain.finetune.metrics import classification_metrics, regression_metrics, score_predictions
from sparse_pretrain.finetune.recipe import TaskSection


def test_two_classes_by_hand() -> None:
    # 3 true positives, 1 false positive, 2 false negatives, 4 true negatives.
    labels = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])
    predicted = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    metrics = classification_metrics(predicted, labels, classes=2)
    assert metrics["accuracy"] == pytest.approx(0.7)
    assert metrics["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert metrics["matthews"] == pytest.approx((3 * 4 - 1 * 2) / math.sqrt(4 * 5 * 5 * 6))


def test_f1_of_three_classes_is_the_mean_over_classes() -> None:
    metrics = classification_metrics(np.array([0, 1, 1, 1]), np.array([0, 1, 2, 2]), classes=3)
    assert metrics["f1"] == pytest.approx((1 + 0.5 + 0) / 3)


def test_correlations_and_error_in_the_files_units() -> None:
    metrics = regression_metrics(np.array([0.1, 0.2, 0.9], np.float32), np.array([0.0, 0.4, 0.6]), scale=5)
    assert metrics["spearman"] == pytest.approx(1.0)
    assert metrics["rmse"] == pytest.approx(5 * math.sqrt((0.01 + 0.04 + 0.09) / 3), rel=1e-6)
    # Sum of products of deviations 0.22, squares 0.38 and 0.56/3.
    assert metrics["pearson"] == pytest.approx(0.22 / math.sqrt(0.38 * 0.56 / 3), rel=1e-6)


def test_constant_predictions_correlate_with_nothing() -> None:
    metrics = regression_metrics(np.full(4, 0.5), np.arange(4.0), scale=1)
    assert (metrics["pearson"], metrics["spearman"]) == (0.0, 0.0)


def test_the_largest_logit_is_the_class() -> None:
    task = TaskSection(kind="classification", train="x.csv", text="text", label="label")
    logits = np.array([[0.0, 1.0], [3.0, -1.0], [0.0, 0.1]])
    assert score_predictions(task, logits, np.array([1, 0, 0]))["accuracy"] == pytest.approx(2 / 3)
