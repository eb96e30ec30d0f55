"""Makes the random networks of tests/differential importable, and the helpers beside this file."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "differential")]
