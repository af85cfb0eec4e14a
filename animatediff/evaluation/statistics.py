"""Means with 95% intervals, and paired differences of two methods."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Mean:
    """A mean over n values with its 95% interval: mean - half_width to mean + half_width."""

    mean: float
    half_width: float  # NaN for a single value
    n: int

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width


def mean_interval(values: Sequence[float]) -> Mean:
    """Mean and 95% interval of independent values; NaN values are left out (n says how many count).

    Student's t: mean +- t(n-1) s / sqrt(n). Chosen over a percentile bootstrap because evaluations are often of 5 to
    20 videos, where that bootstrap is markedly too narrow; from about 30 on, the two agree. The interval of a bounded
    measure may reach past its bound, and one of values that are all equal has no width: then n is too small, or the
    measure too coarse, to say more.
    """
    known = [v for v in values if not math.isnan(v)]
    n = len(known)
    if n == 0:
        return Mean(math.nan, math.nan, 0)
    mean = math.fsum(known) / n
    if n == 1:
        return Mean(mean, math.nan, 1)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in known) / (n - 1))
    return Mean(mean, student_t(n - 1) * deviation / math.sqrt(n), n)


def paired_difference(values: Sequence[float], baseline: Sequence[float]) -> Mean:
    """Mean and 95% interval of values[i] - baseline[i] over the jobs that both methods have (paired t)."""
    return mean_interval([v - b for v, b in zip(values, baseline, strict=True)])


def student_t(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The two-sided quantile of Student's t: |t| stays below it with probability `confidence`.

    ValueError for fewer than one degree of freedom.
    """
    if freedom < 1:
        raise ValueError(f"degrees of freedom are {freedom}; expected at least 1")
    return float(stdtrit(freedom, (1 + confidence) / 2))
