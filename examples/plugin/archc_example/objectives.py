"""The objective `lipschitz`: how much a network can stretch a change of its input, at most.

The product of the largest singular values of its matrices bounds it where activations stretch nothing: an easy number
to search by, `--objective accuracy --objective lipschitz:min`.
"""

from __future__ import annotations

import numpy as np

from archc.search.objectives import Context, ObjectiveKind


def bound(context: Context) -> float:
    matrices = [w.reshape(len(w), -1) for w in context.weights.values() if w.ndim > 1]
    return float(np.prod([np.linalg.norm(w, 2) for w in matrices]))


LIPSCHITZ = ObjectiveKind("lipschitz", "product of the largest singular values", larger_is_better=False, measure=bound)
