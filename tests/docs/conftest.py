"""The tests of this room import their helpers (source, laws, draw_tree) by name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
