"""`python -m sftc` is `sftc`."""

import sys

from sftc.cli import main

sys.exit(main())
