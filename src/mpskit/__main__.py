"""``python -m mpskit`` is ``mpskit``."""

import sys

from mpskit.cli.main import main

sys.exit(main())
