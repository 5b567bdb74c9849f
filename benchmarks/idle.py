"""What an idle worker costs: the share of one core that it uses while there is nothing to do.

    python benchmarks/idle.py [seconds]

Most of it is the watcher, which asks the database every 20 to 100 ms whether another process has committed (S9), and
the polling, which once a second looks for leases that ran out.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import threading
from pathlib import Path

from holdfast import Holdfast


def cpu() -> float:
    """Seconds of processor time that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 10.0
    with tempfile.TemporaryDirectory() as directory:
        app = Holdfast(f"sqlite:///{Path(directory) / 'idle.db'}")

        @app.job
        def nothing(n: int) -> int:
            return n

        with app:
            nothing.run(1).wait()
            pause = threading.Event()
            pause.wait(1.0)  # let the watcher slow down
            checks, before = app._engine.watcher.checks, cpu()
            pause.wait(seconds)
            used, checks = cpu() - before, app._engine.watcher.checks - checks
    print(
        f"idle worker: {100 * used / seconds:.2f} % of a core over {seconds:g} s, {checks / seconds:.1f} looks a second"
    )


if __name__ == "__main__":
    main()
