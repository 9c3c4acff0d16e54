"""What a case is, and running one in a process of its own, so that hanging is an outcome too."""

import json
import linecache
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["RIGHT", "Case", "Refused", "Running", "Wrong", "attempt", "expect", "put", "refused"]

RIGHT = "right"
_WALL = 10
"""Seconds by the clock for each second of computing: other work may share the machine."""

_IDLE = 25
"""Seconds after which a case that computes nothing at all is stuck."""


class Wrong(Exception):
    """Neither right nor refused; the message says what was seen."""


class Refused(str):
    """The sentence of a refusal."""


@dataclass(frozen=True)
class Case:
    """
    Attributes:
        name: unique in its kind; says what is attacked by what.
        attack: gets an empty folder of its own; returns :data:`RIGHT` or a :class:`Refused`, and
            raises where the outcome is neither.
        fault: the kind of fault that it looks for, where one was known; for the table.
        seconds: of computing, at most.
        memory: MB more than at its start, at most.
    """

    name: str
    attack: Callable[[Path], str]
    fault: str = ""
    seconds: int = 60
    memory: int = 4000


def attempt(call: Callable[[], object]) -> object:
    """What a call of the API returns, or a :class:`Refused` where it refuses deliberately."""
    try:
        return call()
    except (ValueError, TypeError) as error:
        sentence, frame = str(error), traceback.extract_tb(error.__traceback__)[-1]
        # extract_tb gives the line of the statement: a refusal is raised by one of ours.
        line = linecache.getline(frame.filename, frame.lineno).strip()
        ours = "odam_d2" in frame.filename and line.startswith("raise")
        if not (ours or "unexpected keyword argument" in sentence or "required" in sentence):
            raise
        if "\n" in sentence or not sentence:
            raise Wrong(f"refused, and not in one line: {sentence!r}") from error
        return Refused(sentence)


def expect(condition: object, message: str) -> None:
    if not condition:
        raise Wrong(message)


def refused(call: Callable[[], object], words: str = "") -> Refused:
    """A call that must be refused, by a sentence that has some words in it."""
    found = attempt(call)
    expect(isinstance(found, Refused), f"was to be refused, and returned {str(found)[:200]}")
    expect(words in found, f"refused without the word {words!r}: {found}")
    return found


class Running:
    """A case under way in a forked process."""

    def __init__(self, case: Case):
        self.case = case
        self.folder = Path(tempfile.mkdtemp(prefix="attack_"))
        self.started = time.monotonic()
        self.looked = self.moved = self.started
        self.used = 0
        self.end = self.started + max(20, _WALL * case.seconds)
        self.pipe, write = os.pipe()
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.pipe)
            _child(case, self.folder, write)
        os.close(write)

    def ended(self, seconds: float) -> bool:
        """Whether it says something within so many seconds."""
        return bool(select.select([self.pipe], [], [], seconds)[0])

    def late(self) -> bool:
        """Whether its time is over, or it waits for something that never comes."""
        now = time.monotonic()
        if now > self.looked + 5:
            used, self.looked = self._used(), now
            if used != self.used:
                self.used, self.moved = used, now
        return now > self.end or now > self.moved + _IDLE

    def _used(self) -> int:
        """Ticks of computing of all its processes."""
        total = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            if int(fields[3]) == self.pid:  # the session
                total += sum(int(x) for x in fields[11:15])
        return total

    def finish(self) -> tuple[str, str]:
        """``("right" | "refused" | "wrong", what was said)``. Ends it where it still runs."""
        late = self.late()
        if late:
            os.killpg(self.pid, signal.SIGKILL)
        with os.fdopen(self.pipe, "rb") as file:
            said = file.read()
        status = os.waitpid(self.pid, 0)[1]
        for _ in range(3):
            try:  # what the case started
                os.killpg(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                break
        shutil.rmtree(self.folder, ignore_errors=True)
        if said:
            return tuple(json.loads(said))
        by = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        if late or by == signal.SIGXCPU:
            return (
                "wrong",
                f"did not end within {self.case.seconds} s of computing, or waited for ever",
            )
        return "wrong", f"the process died (signal {by}, status {status})"


def _child(case: Case, folder: Path, pipe: int) -> None:
    os.setsid()
    limit(case.seconds, case.memory)
    with open(folder.with_suffix(".log"), "w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    try:
        os.unlink(folder.with_suffix(".log"))
        found = case.attack(folder)
        if found == RIGHT:
            verdict = (RIGHT, "")
        elif isinstance(found, Refused):
            verdict = ("refused", found)
        else:
            verdict = ("wrong", f"the case returned {found!r}")
    except Wrong as error:
        verdict = ("wrong", str(error))
    except MemoryError:
        verdict = ("wrong", "memory was exhausted")
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(last.filename).name}:{last.lineno}"
        verdict = ("wrong", f"{type(error).__name__} at {place}: {' '.join(str(error).split())}")
    os.write(pipe, json.dumps((verdict[0], verdict[1][:1500])).encode())
    os._exit(0)


def put(place: Any, path: tuple, value: object) -> None:
    """Set what lies at a path of keys and indices; ``KeyError`` as the value removes it."""
    *above, last = path
    for step in above:
        place = place[step]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value


def limit(seconds: int, memory: int) -> None:
    """Of this process and those that it forks, each."""
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + memory * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
