"""Bootstrap intervals: against scipy, their coverage, and the edge cases."""

import numpy as np
import pytest
from scipy import stats

from raylab.evaluation.intervals import mean_interval, mean_intervals


def test_agrees_with_scipy_percentile_bootstrap():
    values = np.random.default_rng(0).beta(0.5, 0.7, 120)
    mean, low, high = mean_interval(values, draws=20_000)
    reference = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=1, vectorized=True
    ).confidence_interval
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((reference.low, reference.high), abs=2e-3)


def test_covers_the_true_mean_as_often_as_it_says():
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(400):
        _, low, high = mean_interval(rng.random(60), confidence=0.9, draws=400, seed=trial)
        hits += low <= 0.5 <= high
    # A percentile bootstrap at n = 60 falls a little short; 3 standard deviations on either side.
    assert 0.84 < hits / 400 < 0.95


def test_is_a_function_of_its_arguments():
    values = list(np.random.default_rng(1).random(50))
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values) != mean_interval(values, seed=1)
    narrow, wide = mean_interval(values, confidence=0.5), mean_interval(values, confidence=0.99)
    assert wide[1] < narrow[1] < narrow[0] < narrow[2] < wide[2]


def test_one_query_and_equal_values_have_no_width():
    assert mean_interval([0.3]) == (0.3, 0.3, 0.3)
    assert mean_interval([0.1] * 7) == (0.1, 0.1, 0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "at least one"),
        (([[1.0]],), "flat"),
        (([1.0, np.nan],), "value 1"),
        (([1.0], 1.0), "confidence is 1.0"),
        (([1.0], 0.95, 0), "draws is 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        mean_interval(*arguments)


def test_samples_taken_together_have_the_bits_that_they_have_alone():
    """Draws are those of one array of resamples, whatever is computed at once and beside what."""
    rng = np.random.default_rng(1)
    samples = [rng.random(n) for n in (3, 2_000, 3, 2_000, 700)] + [np.ones(3)]
    for sample, found in zip(samples, mean_intervals(samples), strict=True):
        assert found == mean_interval(sample)
        drawn = np.random.default_rng(0).integers(sample.size, size=(2_000, sample.size))
        low, high = np.quantile(sample[drawn].mean(1), [0.025, 0.975])
        assert found == (sample.mean(), low, high)
