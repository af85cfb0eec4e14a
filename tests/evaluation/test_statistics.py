"""Intervals: quantiles from printed tables, coverage by simulation, pairing."""

import math

import numpy as np
import pytest

from animatediff.evaluation.statistics import mean_interval, paired_difference, student_t


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (30, 2.042), (60, 2.000), (1000, 1.962)],
)
def test_quantiles_of_the_printed_tables(freedom, quantile):
    assert student_t(freedom) == pytest.approx(quantile, abs=6e-4)


def test_ninety_nine_percent_and_bad_freedom():
    assert student_t(10, 0.99) == pytest.approx(3.169, abs=6e-4)
    with pytest.raises(ValueError, match="0"):
        student_t(0)


def test_interval_of_known_values():
    result = mean_interval([1.0, 2.0, 3.0, math.nan])
    assert (result.mean, result.n) == (2, 3)
    assert result.half_width == pytest.approx(4.3027 / math.sqrt(3), abs=1e-3)
    assert (result.low, result.high) == (result.mean - result.half_width, result.mean + result.half_width)


def test_one_value_has_no_interval_and_none_no_mean():
    assert math.isnan(mean_interval([0.5]).half_width)
    assert mean_interval([0.5]).mean == 0.5
    assert math.isnan(mean_interval([math.nan]).mean)
    assert mean_interval([]).n == 0


def test_small_samples_are_covered_as_promised():
    rng = np.random.default_rng(0)
    results = [mean_interval(rng.normal(3, 2, 5)) for _ in range(2000)]
    covered = np.mean([r.low <= 3 <= r.high for r in results])
    assert covered == pytest.approx(0.95, abs=0.015)


def test_pairing_removes_what_the_jobs_share():
    baseline = [0.1, 0.5, 0.9, 0.3]
    difference = paired_difference([b + 0.01 * k for k, b in enumerate(baseline)], baseline)
    assert difference.mean == pytest.approx(0.015)
    assert difference.half_width < 0.03 < mean_interval(baseline).half_width
    with pytest.raises(ValueError, match="zip"):
        paired_difference([1.0], baseline)
