"""How far a figure would move by chance: the bootstrap over pairs or queries."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats

RESAMPLES = 1000  # the interval's ends are then good to about a tenth of its width


def bootstrap(
    statistic: Callable[..., np.ndarray], columns: Sequence[np.ndarray], seed: int = 0, resamples: int = RESAMPLES
) -> np.ndarray:
    """Statistics of columns (n,) over resampled rows, the same rows for all columns: (outputs, resamples).

    `statistic` is `spearmans` or `means`; row i of every column belongs to the same pair or query.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13 (percentile intervals).
    """
    if len(columns[0]) < 2:  # scipy refuses to resample a single row
        return np.repeat(statistic(*(column[None] for column in columns)), resamples, axis=1)
    settings = {"paired": True, "vectorized": True, "method": "percentile", "n_resamples": resamples, "batch": 100}
    with warnings.catch_warnings():  # about resamples whose statistic is NaN: `interval` leaves them out
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        return stats.bootstrap(tuple(columns), statistic, rng=seed, **settings).bootstrap_distribution


def spearmans(*columns: np.ndarray, axis: int = -1) -> np.ndarray:
    """Spearman correlation of each column with the last one, over the last axis; NaN where one is constant."""
    ranks = stats.rankdata(np.stack(columns), axis=-1)
    ranks -= ranks.mean(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):  # a resample of few pairs may be constant
        ranks /= np.linalg.norm(ranks, axis=-1, keepdims=True)
    return (ranks[:-1] * ranks[-1]).sum(axis=-1)


def means(*columns: np.ndarray, axis: int = -1) -> np.ndarray:
    """Mean of each column, over the last axis."""
    return np.stack(columns).mean(axis=-1)


def interval(values: np.ndarray) -> list[float]:
    """The middle 95% of bootstrap values: [low, high]; those that are NaN are left out."""
    if np.isnan(values).all():
        return [float("nan")] * 2
    return [float(value) for value in np.nanpercentile(values, [2.5, 97.5])]


def paired(student: np.ndarray, teacher: np.ndarray) -> dict[str, Any]:
    """The interval of a difference, from bootstrap values over the same resamples, and whether it excludes 0."""
    low, high = interval(student - teacher)
    return {"interval": [low, high], "clear": low * high > 0}
