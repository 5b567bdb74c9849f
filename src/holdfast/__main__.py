"""`python -m holdfast`: the command line, where the command itself is not on the PATH."""

import sys

from .cli import main

sys.exit(main())
