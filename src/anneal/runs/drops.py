"""Where a learning rate drops, for reports and previews; where a decay begins, for branches."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

FACTOR = 0.8  # a learning rate that falls to this fraction or less within one step has dropped
Array = NDArray[Any]


def drops(lr: Array, epochs: Array) -> list[int]:
    """Return where a learning rate falls to four fifths or less within a step, and is no slope.

    A slope has, within an epoch, another change of a similar size: the end of a cosine, also of
    one that moves once an epoch. A staircase's next step is by the same factor. Learning rates,
    (n,), are those of some steps, which lie so many `epochs` after the start.
    """
    changes = np.flatnonzero(np.diff(lr))
    found = []
    for place in np.flatnonzero(lr[changes + 1] <= FACTOR * lr[changes]):
        i = changes[place]
        neighbours = [*changes[max(0, place - 1) : place], *changes[place + 1 : place + 2]]
        near = [j for j in neighbours if abs(epochs[j] - epochs[i]) < 1.01]
        if not any(_is_like(lr[j], lr[j + 1], lr[i], lr[i + 1]) for j in near):
            found.append(int(i) + 1)
    return found


def branch_steps(total: int, decay: float, branches: int = 1) -> list[tuple[int, int]]:
    """Return the budgets of a WSD run of `total` steps, and where a run of each begins to decay.

    Both are optimizer steps from the start of the run; its checkpoint is kept after the second.
    """
    budgets = [total >> halvings for halvings in range(branches)]
    return [(budget, budget - max(1, round(decay * budget))) for budget in budgets]


def _is_like(start: float, end: float, before: float, after: float) -> bool:
    """Return whether a change is a third of a drop or more, and not by the same factor."""
    if np.isclose(end * before, after * start, rtol=1e-3, atol=0):
        return False
    change, drop = abs(end - start), before - after
    return bool(3 * change > drop or 3 * change / max(start, end) > drop / before)
