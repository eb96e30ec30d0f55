"""The pipelines, as lists to be read."""

from __future__ import annotations

from archc.passes.cancel_views import CANCEL_VIEWS
from archc.passes.canonicalise import CANONICALISE
from archc.passes.cse import CSE
from archc.passes.dce import DCE
from archc.passes.fold_batch_norm import FOLD_BATCH_NORM
from archc.passes.fold_constants import FOLD_CONSTANTS
from archc.passes.fuse_branches import FUSE_BRANCHES
from archc.passes.join_pieces import JOIN_PIECES
from archc.passes.manager import Pass, until_stable
from archc.passes.merge_layers import MERGE_LAYERS
from archc.passes.simplify import SIMPLIFY

CLEANUP: tuple[Pass, ...] = (
    until_stable("cleanup", (CANONICALISE, SIMPLIFY, JOIN_PIECES, CANCEL_VIEWS, FOLD_CONSTANTS, CSE, DCE)),
)
"""What any graph may go through; the function stays, in training too."""

INFERENCE: tuple[Pass, ...] = (*CLEANUP, FOLD_BATCH_NORM, MERGE_LAYERS, *CLEANUP)
"""Before compiling a network for use; give the weights in the context."""

NAMED: tuple[Pass, ...] = (
    CANONICALISE,
    SIMPLIFY,
    JOIN_PIECES,
    CANCEL_VIEWS,
    FOLD_CONSTANTS,
    CSE,
    DCE,
    *CLEANUP,
    FOLD_BATCH_NORM,
    MERGE_LAYERS,
    FUSE_BRANCHES,
)
"""Every pass that keeps the function, to be asked for by name."""
