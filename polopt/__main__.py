"""``python -m polopt`` is the command ``polopt``."""

import sys

from polopt.cli import main

sys.exit(main())
