"""Makes the generator and its checks importable: `from random_nets import random_net`, `from oracles import check`."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
