"""Metrics of classification and regression, by scikit-learn and scipy."""

import math
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from sparse_pretrain.finetune.recipe import TaskSection

Array = np.ndarray[Any, Any]


def score_predictions(task: TaskSection, logits: Array, labels: Array) -> dict[str, float]:
    """Return the metrics of a task's kind.

    Args:
        task: tells the kind and the scale of regression labels.
        logits: [examples, classes], or [examples, 1] for a regression.
        labels: [examples] class numbers, or scores divided by `task.label_scale`.
    """
    if task.kind == "classification":
        return classification_metrics(logits.argmax(axis=1), labels, logits.shape[1])
    return regression_metrics(logits[:, 0], labels, task.label_scale)


def classification_metrics(predicted: Array, labels: Array, classes: int) -> dict[str, float]:
    """Return accuracy, F1 and Matthews' correlation, as fractions.

    F1 is that of class 1 when there are two classes (as GLUE counts it), the mean over classes otherwise.
    """
    average = "binary" if classes == 2 else "macro"
    return {
        "accuracy": float(accuracy_score(labels, predicted)),
        "f1": float(f1_score(labels, predicted, average=average, zero_division=0)),
        "matthews": float(matthews_corrcoef(labels, predicted)),
    }


def regression_metrics(predicted: Array, labels: Array, scale: float) -> dict[str, float]:
    """Return Pearson's and Spearman's correlation and the root mean squared error in the file's units.

    A correlation with constant predictions is undefined; 0 stands for it, as for predictions that say nothing.
    """
    constant = np.ptp(predicted) == 0 or np.ptp(labels) == 0
    error = (predicted.astype(np.float64) - labels) * scale
    return {
        "pearson": 0.0 if constant else float(pearsonr(predicted, labels).statistic),
        "spearman": 0.0 if constant else float(spearmanr(predicted, labels).statistic),
        "rmse": math.sqrt(float(np.mean(error**2))),
    }
