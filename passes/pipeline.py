"""The pipelines, as lists to be read."""

from __future__ import annotations

from archc.passes.canonicalise import CANONICALISE
from archc.passes.cse import CSE
from archc.passes.dce import DCE
from archc.passes.fold_batch_norm import FOLD_BATCH_NORM
from archc.passes.fold_constants import FOLD_CONSTANTS
from archc.passes.manager import Pass, until_stable

CLEANUP: tuple[Pass, ...] = (until_stable("cleanup", (CANONICALISE, FOLD_CONSTANTS, CSE, DCE)),)
"""What any graph may go through; the function stays, in training too."""

INFERENCE: tuple[Pass, ...] = (*CLEANUP, FOLD_BATCH_NORM, *CLEANUP)
"""Before compiling a network for use; give the weights in the context."""
