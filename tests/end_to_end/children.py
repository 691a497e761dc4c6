"""Runs in processes that can be killed: a nursery imports rbench once and forks a child per run, so that a death costs no second import.

The nursery is an interpreter of its own (this file, executed) because a fork of the test process would inherit its threads and hooks.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class End:
    """How a child ended: killed, or with an exit code; after how many seconds; what it wrote to stderr."""

    killed: bool
    code: int
    seconds: float
    err: str


class Nursery:
    """Starts children; `run` waits for one, `together` for several at once."""

    def __init__(self) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}  # torch refuses autograd after a fork where there is a GPU
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def run(self, results: Path, *, die: dict[str, Any] | None = None, after: float | None = None, chunk: int = 25, **options: Any) -> End:
        """One `rbench.evaluate(results=results, **options)`; die: {"call", "k", "when"} names the moment; after: seconds until SIGKILL."""
        return self._ask([{"results": str(results), "die": die, "after": after, "chunk": chunk, "options": options}])[0]

    def together(self, results: Path, count: int, chunk: int = 25, **options: Any) -> list[End]:
        """The same run in several processes at the same time."""
        return self._ask([{"results": str(results), "die": None, "after": None, "chunk": chunk, "options": options}] * count)

    def _ask(self, orders: list[dict[str, Any]]) -> list[End]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(orders) + "\n")
        self._process.stdin.flush()
        return [End(**told) for told in json.loads(self._process.stdout.readline())]

    def close(self) -> None:
        self._process.communicate("", timeout=60)


# --- inside the nursery -----------------------------------------------------------------------------------------------------------------


def _serve() -> None:
    for module in ("rbench.api", "rbench_results.site.build", "alembic.command", "sqlalchemy.dialects.sqlite", "PIL.Image"):
        importlib.import_module(module)
    for line in sys.stdin:
        started = [_begin(order) for order in json.loads(line)]
        sys.stdout.write(json.dumps([_end(*child) for child in started]) + "\n")
        sys.stdout.flush()


def _begin(order: dict[str, Any]) -> tuple[int, int, float, float | None]:
    """Fork; the child never returns."""
    read, write = os.pipe()
    started = time.perf_counter()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        os.dup2(write, 2)
        os.dup2(write, 1)  # what the nursery says on stdout is its protocol
        os._exit(_child(order))
    os.close(write)
    return pid, read, started, order["after"]


def _end(pid: int, read: int, started: float, after: float | None) -> dict[str, Any]:
    if after is not None:
        time.sleep(max(0.0, after - (time.perf_counter() - started)))
        os.kill(pid, signal.SIGKILL)  # of a child that has ended already: nothing happens
    with os.fdopen(read, errors="replace") as stream:
        err = stream.read()
    _, status = os.waitpid(pid, 0)
    killed = os.WIFSIGNALED(status)
    return {"killed": killed, "code": -1 if killed else os.WEXITSTATUS(status), "seconds": time.perf_counter() - started, "err": err}


def _child(order: dict[str, Any]) -> int:
    try:
        from rbench import runner
        from rbench.api import evaluate

        runner.CHUNK = order["chunk"]
        if order["die"]:
            _booby_trap(**order["die"])
        evaluate(order["options"].pop("model"), results=order["results"], **order["options"])
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _booby_trap(call: str, k: int, when: str) -> None:
    """Die at the k-th call of `package.module:name` or `module:Class.name`, before or after it; `sql:TEXT`: after a statement with TEXT."""
    where, _, name = call.partition(":")
    if where == "sql":
        return _sql_trap(name, k)
    holder: Any = importlib.import_module(where)
    *path, last = name.split(".")
    for part in path:
        holder = getattr(holder, part)
    whole, count = getattr(holder, last), _Count(k)

    def trap(*args: Any, **named: Any) -> Any:
        last_one = count()
        if last_one and when == "before":
            die()
        value = whole(*args, **named)
        if last_one:
            die()
        return value

    setattr(holder, last, trap)
    return None


def _sql_trap(text: str, k: int) -> None:
    """COMMIT is no statement of a cursor, and so has an event of its own."""
    from sqlalchemy import Engine, event

    count = _Count(k)

    def after_statement(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if text in statement and count():
            die()

    def before_commit(_connection: Any) -> None:
        if count():
            die()

    listener: Callable[..., None] = before_commit if text == "COMMIT" else after_statement
    event.listen(Engine, "commit" if text == "COMMIT" else "after_cursor_execute", listener)


class _Count:
    """True at the k-th call and at no other."""

    def __init__(self, k: int) -> None:
        self.left = k

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


def die() -> None:
    """As `kill -9` does it: no handler, no buffer, no clean-up."""
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    _serve()
