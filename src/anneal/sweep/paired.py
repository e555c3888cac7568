"""Is one better than the other? Statistics of results that are paired by their seeds."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

EXACT = 2**16  # patterns of signs; of more seeds than 16 so many are drawn
POWER, LEVEL = 0.8, 0.05
MOST_SEEDS = 1000


class Paired(NamedTuple):
    """What the differences of pairs say."""

    mean: float
    low: float  # of its 95 % interval
    high: float
    p: float  # of the paired permutation test, of two sides
    seeds: int | None  # that would show a difference of this size; None: more than MOST_SEEDS


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean of two or more values, by Student's t."""
    half = stats.t.ppf(1 - LEVEL / 2, len(values) - 1) * stats.sem(values)
    return float(np.mean(values) - half), float(np.mean(values) + half)


def paired(first: Sequence[float], second: Sequence[float], level: float = LEVEL) -> Paired:
    """Compare the second of each pair with the first.

    If both are the same, each difference may as well have had the other sign: p is the share of all
    patterns of signs with a mean as far from 0 or farther. Each pattern counts, up to 16 pairs.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    # Metrics are in single precision: equal differences have to be equal, for ties.
    differences = np.round((b - a) / max(np.abs([a, b]).max(), 1e-300), 6)
    test = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=EXACT, random_state=0
    )
    needed = seeds_needed(float(np.mean(b - a)), float(np.std(b - a, ddof=1)), level)
    return Paired(float(np.mean(b - a)), *interval(b - a), float(test.pvalue), needed)


def seeds_needed(difference: float, std: float, level: float = LEVEL) -> int | None:
    """Return how many pairs show such a difference in 80 of 100 comparisons, by a paired t-test.

    No fewer than the permutation test needs to get below `level`; None: more than MOST_SEEDS.
    """
    n = np.arange(math.ceil(1 - math.log2(level)), MOST_SEEDS + 1)
    size = min(abs(difference) / max(std, 1e-300), 100.0)  # beyond it the distribution overflows
    shift, limit = size * np.sqrt(n), stats.t.ppf(1 - level / 2, n - 1)
    enough = n[stats.nct.sf(limit, n - 1, shift) + stats.nct.cdf(-limit, n - 1, shift) >= POWER]
    return int(enough[0]) if len(enough) else None


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values for several tests at once, by Holm's step-down correction."""
    order = np.argsort(p)
    raised = np.asarray(p)[order] * np.arange(len(p), 0, -1)
    corrected = np.minimum(1, np.maximum.accumulate(raised))
    return [float(corrected[place]) for place in np.argsort(order)]


def verdict(names: tuple[str, str], metric: str, better: str, test: Paired, how: str) -> str:
    """Return in a sentence what the comparison of two has found; p may be corrected."""
    found = test.p < LEVEL
    scale, unit = (100, " points") if "acc" in metric else (1, "")
    scale *= -1 if found and test.mean < 0 else 1
    low, high = sorted((scale * test.low, scale * test.high))
    size = f"{scale * test.mean:.3g}{unit} (95 % interval {low:.3g} to {high:.3g}, "
    size += f"p = {test.p:.2g}, {how})"
    if found:
        word = "better" if (test.mean > 0) == (better == "max") else "worse"
        return f"{names[1]} is {word} than {names[0]} by {size}"
    seeds = f"about {test.seeds}" if test.seeds else f"more than {MOST_SEEDS:,}"
    return (
        f"no difference can be told: {names[1]} - {names[0]} is {size}; {seeds} seeds would be "
        "needed to see one of this size"
    )
