"""Statistical tests with a stated error rate, for distributions of what is drawn."""

import numpy as np
import scipy.stats

# Each test has a fixed seed. With another seed it would reject what is right with this probability.
ALPHA = 1e-4
COUNT = 20_000


def assert_likely(name, pvalue):
    assert pvalue > ALPHA, f"{name}: p = {pvalue:.2g}"


def assert_uniform(name, values, low, high):
    assert np.min(values) >= low, name
    assert np.max(values) <= high, name
    assert_likely(name, scipy.stats.kstest(values, scipy.stats.uniform(low, high - low).cdf).pvalue)


def assert_independent(name, x, y):
    """Neither variable grows or falls with the other."""
    assert_likely(name, scipy.stats.spearmanr(x, y).pvalue)
