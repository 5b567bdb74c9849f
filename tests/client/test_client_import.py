"""Only `holdfast.client` needs httpx, and says so where it is absent."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
sys.modules["httpx"] = None  # as if it were not installed
import holdfast, holdfast.http, holdfast.cli
try:
    import holdfast.client
except ImportError as error:
    print(error)
"""


def test_without_httpx_the_error_names_the_extra() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == ""
    assert done.stdout == (
        'holdfast.client needs httpx. Get it with: pip install "holdfast[client]" '
        '(in a checkout: pip install ".[client]")\n'
    )
