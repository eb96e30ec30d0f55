"""Accuracy of a network before it is trained, with how far it may be off: a surrogate for searches."""

from __future__ import annotations

from archc.metanet.surrogate.model import Prediction, Surrogate

__all__ = ["Prediction", "Surrogate"]
