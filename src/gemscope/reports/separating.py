"""Classes told apart by a few dimensions of some means: which are chosen, and how a classifier does with them on
held-out rows. The classifier is scikit-learn's.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gemscope.errors import MissingDependency
from gemscope.features.intervals import wilson
from gemscope.reports.probe import ROUNDS, Chosen, Fit, OneVsRest

Array = NDArray[Any]


def require_sklearn() -> None:
    """Raises MissingDependency, with the command, where scikit-learn is not there."""
    try:
        import sklearn.linear_model  # noqa: F401
    except ImportError as error:
        raise MissingDependency('sparse probing needs scikit-learn: pip install "gemscope[probe]"') from error


def fit(basis: str, x: Any, y: Array, tested: Array, *, classes: Sequence[str], k: int | None) -> Fit:
    """One probe for two classes, or one a class; judged on the held-out texts, of which nothing else has seen any."""
    positives = [1] if len(classes) == 2 else range(len(classes))
    probes, scores = [], []
    for one in positives:
        probe, score = _probe(x, y == one, tested, k=k, label=classes[one])
        probes.append(probe)
        scores.append(score)
    said = (scores[0] > 0).astype(int) if len(classes) == 2 else np.argmax(scores, axis=0)
    truth = y[tested]
    low, high = wilson(int((said == truth).sum()), len(truth))
    return Fit(
        basis=basis,
        k=k,
        accuracy=float((said == truth).mean()),
        low=low,
        high=high,
        balanced=float(np.mean([(said[truth == one] == one).mean() for one in range(len(classes))])),
        probes=tuple(probes),
    )


def _probe(x: Any, positive: Array, tested: Array, *, k: int | None, label: str) -> tuple[OneVsRest, Array]:
    """A class's probe, and what it says of the held-out texts: above 0 where it takes them for the class."""
    dimensions = np.arange(x.shape[1])
    differences = _differences(x[~tested], positive[~tested])
    if k is not None:
        dimensions = np.argsort(-np.abs(differences), kind="stable")[:k]
    columns = x[:, dimensions]
    columns = columns if isinstance(columns, np.ndarray) else columns.toarray()
    seen = columns[~tested]
    middle, spread = seen.mean(0), seen.std(0)
    columns = (columns - middle) / np.where(spread > 0, spread, 1)
    weights, scores, converged = _logistic(columns[~tested], positive[~tested], columns[tested])
    said, truth = scores > 0, positive[tested]
    chosen = () if k is None else zip(dimensions.tolist(), differences[dimensions].tolist(), weights, strict=True)
    made = OneVsRest(
        label=label,
        chosen=tuple(Chosen(dimension=one, difference=by, weight=weight) for one, by, weight in chosen),
        accuracy=float((said == truth).mean()),
        balanced=float(np.mean([(said[truth == side] == side).mean() for side in (False, True)])),
        converged=converged,
    )
    return made, scores


def _differences(x: Any, positive: Array) -> Array:
    """Mean of each dimension over the texts of a class, less that over the others."""
    return np.asarray(x[positive].mean(axis=0) - x[~positive].mean(axis=0), dtype=np.float64).ravel()


def _logistic(x: Array, y: Array, held_out: Array) -> tuple[list[float], Array, bool]:
    """Coefficients, decision values of the held-out rows, and whether the fit converged."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported by `converged`
        fitted = LogisticRegression(max_iter=ROUNDS).fit(x, y)
    scores: Array = fitted.decision_function(held_out)
    return fitted.coef_[0].tolist(), scores, int(fitted.n_iter_[0]) < ROUNDS
