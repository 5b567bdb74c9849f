"""`python -m holdfast.cli`: the command where it is not on the PATH, and for the demo's own workers."""

import sys

from . import main

sys.exit(main())
