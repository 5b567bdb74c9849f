"""The store conformance suite: what any store must do, as tests that run against yours.

    class TestMyStore(StoreContract):
        def make_store(self, clock):
            return MyStore("my://...", clock=clock)

        def force_status(self, connection, run_id, status):
            ...

The suite drives every verb of `holdfast.store.base.Store` on a real connection with a clock turned by hand. It needs
a test runner that calls `setup_method` and `teardown_method`, as pytest does, and imports none itself.
"""

from __future__ import annotations

from .contract.below import BelowContract
from .contract.claiming import ClaimContract
from .contract.database import DatabaseContract
from .contract.ending import EndingContract
from .contract.following import FollowingContract
from .contract.forgetting import ForgettingContract
from .contract.keys import KeyContract
from .contract.leases import LeaseContract
from .contract.listing import ListingContract
from .contract.steps import StepContract
from .contract.triggering import TriggerContract
from .contract.workers import WorkerContract

__all__ = ["StoreContract"]


class StoreContract(
    DatabaseContract,
    TriggerContract,
    ClaimContract,
    KeyContract,
    LeaseContract,
    StepContract,
    EndingContract,
    ForgettingContract,
    FollowingContract,
    ListingContract,
    WorkerContract,
    BelowContract,
):
    """All promises of a store. A subclass says how to make one."""
