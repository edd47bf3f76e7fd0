"""``python -m fedtune`` is the command ``fedtune``."""

import sys

from fedtune.cli import main

sys.exit(main())
