"""The counting of permutations is shared with benchmarks/symmetry_brute.py, which finds it by path."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
