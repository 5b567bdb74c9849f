"""Two hosts with a worker each, PostgreSQL in the middle; one of them is cut off in the middle of a run.

The hosts are network namespaces of Linux, each with a cable (a veth pair) to the machine where the database is. Needs
root, `ip` and the programs of PostgreSQL; everything is gone at the end.

    sudo python two_hosts.py
"""

import glob
import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from holdfast import Holdfast, SyncStep

LEASE, POLLING, LEGS = 3.0, 0.5, 8
#: So that two of these may go beside each other.
TAG = os.getpid() % 10000
#: Nobody else's, we hope: two cables of two addresses each, .1 and .5 in the middle.
NET = f"10.203.{TAG % 256}"


def make(url: str, host: str, *, works: bool) -> Holdfast:
    app = Holdfast(url, worker=works, lease=LEASE, polling_interval=POLLING)

    @app.job
    def fly(step: SyncStep, legs: int) -> list[str]:
        def leg() -> str:
            time.sleep(0.5)
            return host  # who did it

        return [step.run(f"leg-{n}", leg) for n in range(legs)]

    return app


def work(url: str, host: str) -> None:
    """What is executed on each of the hosts."""
    with make(url, host, works=True):
        sys.stdin.read()


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"NOT POSSIBLE HERE: ip {' '.join(words)}: {done.stderr.strip()}")


def connect_host(stack: ExitStack, host: str, first: int) -> str:
    """A namespace with a cable to us; gives our end's name. Its worker reaches us at NET.first."""
    namespace, ours, theirs = f"holdfast-{TAG}-{host}", f"hf{TAG}{host}-here", f"hf{TAG}{host}-there"
    ip("netns", "add", namespace)
    stack.callback(subprocess.run, ["ip", "netns", "del", namespace], check=False)  # and the cable with it
    ip("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", namespace)
    stack.callback(subprocess.run, ["ip", "link", "del", ours], check=False, capture_output=True)
    ip("addr", "add", f"{NET}.{first}/30", "dev", ours)
    ip("link", "set", ours, "up")
    ip("-n", namespace, "addr", "add", f"{NET}.{first + 1}/30", "dev", theirs)
    ip("-n", namespace, "link", "set", theirs, "up")
    return ours


def start_database(stack: ExitStack, port: int) -> None:
    """PostgreSQL in a folder that goes away. It refuses to run as root, so it runs as nobody."""
    found = sorted(glob.glob("/usr/lib/postgresql/*/bin/postgres")) or [shutil.which("postgres") or ""]
    if not found[-1]:
        raise SystemExit("NOT POSSIBLE HERE: there are no programs of PostgreSQL")
    programs = Path(os.path.realpath(found[-1])).parent
    folder = stack.enter_context(tempfile.TemporaryDirectory(dir="/tmp"))
    shutil.chown(folder, "nobody")
    data = f"{folder}/data"
    init = [str(programs / "initdb"), "-D", data, "-U", "shop", "-E", "UTF8", "--locale=C", "-A", "trust", "--no-sync"]
    subprocess.run(init, check=True, stdout=subprocess.DEVNULL, user="nobody", cwd=folder)
    with open(f"{data}/pg_hba.conf", "a") as file:
        file.write(f"host all all {NET}.0/24 trust\n")
    order = [str(programs / "postgres"), "-D", data, "-p", str(port), "-k", "", "-F"]
    order += ["-c", f"listen_addresses=127.0.0.1,{NET}.1,{NET}.5"]
    with open(f"{folder}/log", "wb") as log:
        server = subprocess.Popen(order, stderr=log, stdout=log, user="nobody", cwd=folder)
    stack.callback(server.wait)
    stack.callback(server.terminate)
    while b"ready to accept" not in Path(f"{folder}/log").read_bytes():
        time.sleep(0.05)
        if server.poll() is not None:
            raise SystemExit(Path(f"{folder}/log").read_text())


def start_worker(stack: ExitStack, host: str, url: str) -> None:
    command = ["ip", "netns", "exec", f"holdfast-{TAG}-{host}", sys.executable, __file__, "worker", url, host]
    # Leaving it closes its input, and then it stops in order.
    stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL))


def main() -> None:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise SystemExit("NOT POSSIBLE HERE: only root may make network namespaces, with `ip` (iproute2)")
    port = 20000 + os.getpid() % 20000
    with ExitStack() as stack:
        cables = {"a": connect_host(stack, "a", 1), "b": connect_host(stack, "b", 5)}
        start_database(stack, port)
        app = stack.enter_context(make(f"postgresql://shop@127.0.0.1:{port}/postgres", "middle", works=False))
        for host, address in (("a", f"{NET}.1"), ("b", f"{NET}.5")):
            start_worker(stack, host, f"postgresql://shop@{address}:{port}/postgres")
        fly = app.get_job("fly")
        assert fly is not None
        run = fly.trigger(LEGS).wait()
        while not (done := [step for step in app.get_steps(run.id).wait() if step.output]):
            time.sleep(0.1)
        first = done[0].output
        print(f"host {first} has begun; its cable is cut", flush=True)
        ip("link", "set", cables[first], "down")
        cut = time.monotonic()
        flown_by = run.result(timeout=60).wait()
        print("flown by", " ".join(flown_by))
        assert set(flown_by) == {"a", "b"}, "the steps of the first were kept, the other one did the rest"
        took = time.monotonic() - cut - 0.5 * (LEGS - flown_by.count(first))
        print(f"host {flown_by[-1]} took over and finished it, {took:.1f} s later than without the cut")
        ip("link", "set", cables[first], "up")
        healed = time.monotonic()
        while first not in [one.result(timeout=60).wait()[0] for one in [fly.trigger(1).wait() for _ in range(4)]]:
            pass
        print(
            f"host {first} works again {time.monotonic() - healed:.1f} s after its cable is back; nothing was restarted"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(*sys.argv[2:])
    else:
        main()
