"""The installed `rbench` as a process of its own: what a user's shell starts."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(sys.executable).parent / "rbench"

_WATCHED = """
import json, resource, sys
from rbench.cli.app import main
code = main(sys.argv[1:])
spent = resource.getrusage(resource.RUSAGE_SELF)
told = {"modules": sorted({name.partition(".")[0] for name in sys.modules}), "seconds": spent.ru_utime + spent.ru_stime}
print(json.dumps(told), file=sys.stderr)
sys.exit(code)
"""


class Screen(io.StringIO):
    """A stream that calls itself a terminal."""

    def isatty(self) -> bool:
        return True


@dataclass(frozen=True)
class Cost:
    """What a command loaded (top-level modules) and the CPU seconds of its whole process, interpreter included."""

    modules: set[str]
    seconds: float


def rbench(*args: str, timeout: float = 600, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `rbench ARGS` to its end; stdout and stderr as text. Neither is a terminal."""
    return subprocess.run([str(SCRIPT), *args], capture_output=True, text=True, timeout=timeout, env={**os.environ, **env}, check=False)


def watched(*args: str, before: str = "") -> Cost:
    """Run a command that must succeed, after the statement `before`, and say what it cost."""
    done = subprocess.run([sys.executable, "-P", "-c", before + _WATCHED, *args], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stderr.splitlines()[-1])
    return Cost(set(told["modules"]), told["seconds"])
