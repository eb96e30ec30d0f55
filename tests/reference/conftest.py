"""Makes the references and the table of cases importable: `from torch_reference import REFERENCE`, `import cases`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
