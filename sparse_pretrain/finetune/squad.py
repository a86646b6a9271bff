"""Exact match and F1 of answers, by the rules of SQuAD's official scorers (evaluate-v1.1.py and -v2.0.py)."""

import re
import string
from collections import Counter
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized(answer: str) -> str:
    """Return an answer in lower case, without ASCII punctuation and English articles, single spaces between words.

    In that order: what punctuation leaves standing alone ("a.") is an article, and no article is found across a
    hyphen ("the-end" becomes "theend"). Punctuation outside ASCII (« », –) stays.
    """
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def exact(answer: str, truth: str) -> float:
    """Return 1 when both are the same after `normalized`, else 0."""
    return float(normalized(answer) == normalized(truth))


def overlap_f1(answer: str, truth: str, no_answer: bool) -> float:
    """Return F1 of the words that answer and truth share, each as often as both have it.

    With `no_answer` (version 2.0), an empty side counts 1 when the other is empty, too; version 1.1 gives 0.
    """
    said, right = normalized(answer).split(), normalized(truth).split()
    if no_answer and not (said and right):
        return float(said == right)
    shared = (Counter(said) & Counter(right)).total()
    return 2 * shared / (len(said) + len(right)) if shared else 0.0


def squad_metrics(
    answers: Sequence[str], truths: Sequence[Sequence[str]], no_answer: bool
) -> dict[str, float]:
    """Return F1 and exact match, means over questions of the best truth each, as fractions.

    With `no_answer`, also those of answerable and unanswerable questions by themselves (0 when there are none).

    Args:
        answers: one a question, empty for "no answer".
        truths: the right answers of each question; version 2.0: none of them means that there is no answer.
        no_answer: version 2.0's rules.
    """
    rows = []
    for answer, right in zip(answers, truths, strict=True):
        # Version 2.0 drops truths of which nothing is left, and takes "" where none remains.
        texts = [text for text in right if not no_answer or normalized(text)] or [""]
        rows.append(
            (
                max(overlap_f1(answer, text, no_answer) for text in texts),
                max(exact(answer, text) for text in texts),
                bool(right),
            )
        )
    metrics = {"f1": mean([row[0] for row in rows]), "exact_match": mean([row[1] for row in rows])}
    if no_answer:
        metrics["answerable_f1"] = mean([row[0] for row in rows if row[2]])
        metrics["answerable_exact_match"] = mean([row[1] for row in rows if row[2]])
        metrics["unanswerable_accuracy"] = mean([row[1] for row in rows if not row[2]])
    return metrics


def mean(values: Sequence[float]) -> float:
    """Return the mean, 0 of nothing."""
    return sum(values) / len(values) if values else 0.0
