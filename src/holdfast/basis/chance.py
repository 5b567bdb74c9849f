"""Chance as an argument: nothing above this floor draws at random by itself."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeAlias

#: Gives a number from 0 to below 1.
Chance: TypeAlias = Callable[[], float]

fraction: Chance = random.SystemRandom().random
"""Chance itself. Of the system, so that the children of one fork do not all draw the same."""
