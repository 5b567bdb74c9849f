"""Forks a child per order: a process of its own for the price of a fork. It runs no threads and opens no database.

Orders and answers are lines of JSON on stdin and stdout. A child that does not come to its end within 60 seconds is
ended by SIGALRM, and what its threads were doing is in its `stderr.txt`.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import crash_programs

LIMIT = 60


def programs(order: dict[str, Any]) -> Any:
    """Those for where the database of this order is. Drivers are only imported for who needs them."""
    return importlib.import_module("crash_servers") if "url" in order else crash_programs


def start(order: dict[str, Any]) -> int:
    programs(order)  # before it is forked, so that it is imported once
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        folder = Path(order.pop("folder"))
        errors = os.open(folder / "stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        nothing = os.open(os.devnull, os.O_RDWR)
        for mine, theirs in ((0, nothing), (1, nothing), (2, errors)):
            os.dup2(theirs, mine)
        os.write(2, f"-- {os.getpid()}: {order}\n".encode())
        faulthandler.enable()
        faulthandler.dump_traceback_later(LIMIT - 5)
        signal.alarm(LIMIT)
        if (fault := order.pop("fault", None)) is not None:
            order["fault"] = tuple(fault)
        programs(order).run(folder, **order)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def outcome(pid: int) -> dict[str, Any]:
    _, status = os.waitpid(pid, os.WUNTRACED)
    if os.WIFSTOPPED(status):
        return {"stopped": True}
    return {"signal": os.WTERMSIG(status)} if os.WIFSIGNALED(status) else {"code": os.WEXITSTATUS(status)}


def main() -> None:
    for line in sys.stdin:
        order = json.loads(line)
        act = order.pop("act")
        if act == "continue":
            os.kill(order["pid"], signal.SIGCONT)
        pid = start(order) if act in ("run", "start") else order["pid"]
        answer = {"pid": pid} if act == "start" else {"pid": pid, **outcome(pid)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
