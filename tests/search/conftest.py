"""Makes what tests of studies share importable: `from small_studies import begin`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
