"""Is one better than the other? Statistics of results that are paired by their seeds."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

EXACT = 2**16  # patterns of signs; of more seeds than 16 so many are drawn
POWER, LEVEL = 0.8, 0.05
MOST_SEEDS = 1000


class Summary(NamedTuple):
    """Some values: their mean, its 95 % interval (Student's t), their standard deviation."""

    mean: float
    std: float
    low: float
    high: float


class Paired(NamedTuple):
    """Differences of pairs: their summary, and what the paired permutation test makes of them."""

    difference: Summary
    pairs: int
    p: float  # of two sides
    seeds: int | None  # that would show a difference of this size; None: more than MOST_SEEDS


def summary(values: Sequence[float]) -> Summary:
    """Return the summary of two or more values."""
    mean, std, n = float(np.mean(values)), float(np.std(values, ddof=1)), len(values)
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * std / math.sqrt(n)
    return Summary(mean, std, mean - half, mean + half)


def paired(first: Sequence[float], second: Sequence[float], tests: int = 1) -> Paired:
    """Compare the second of each pair with the first; `tests`: comparisons that are made at once.

    If both are the same, each difference may as well have had the other sign: p is the share of all
    patterns of signs with a mean as far from 0 or farther. Each pattern counts, up to 16 pairs.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    scale = max(np.abs([a, b]).max(), np.finfo(float).tiny)
    # Metrics are in single precision: equal differences have to be equal, for ties.
    differences = np.round((b - a) / scale, 6)
    test = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=EXACT,
        random_state=0,
    )
    found = summary((b - a).tolist())
    needed = seeds_needed(found.mean, found.std, LEVEL / tests)
    return Paired(found, len(a), float(test.pvalue), needed)


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
    corrected = np.empty(len(p))
    raised = np.asarray(p)[order] * np.arange(len(p), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(raised))
    return corrected.tolist()


def verdict(
    first: str, label: str, metric: str, better: str, test: Paired, p: float, tests: int
) -> str:
    """Return in a sentence what the comparison of two has found; p may be corrected."""
    s, found = test.difference, p < LEVEL
    scale, unit = (100, " points") if "acc" in metric else (1, "")
    scale *= -1 if found and s.mean < 0 else 1
    low, high = sorted((scale * s.low, scale * s.high))
    kind = "exact" if 2**test.pairs <= EXACT else "random"
    by = f"(95 % interval {low:.2g} to {high:.2g}, p = {p:.2g}, {kind} paired permutation "
    by += f"test over {test.pairs} seeds" + (
        f", Holm's correction for {tests} tests)" if tests > 1 else ")"
    )
    size = f"{scale * s.mean:.3g}{unit} {by}"
    if found:
        word = "better" if (s.mean > 0) == (better == "max") else "worse"
        return f"{label} is {word} than {first} by {size}"
    seeds = f"about {test.seeds}" if test.seeds else f"more than {MOST_SEEDS:,}"
    return (
        f"no difference can be told: {label} - {first} is {size}; {seeds} seeds would be needed to "
        "see one of this size"
    )
