"""
Runs tests again and again, each time in a fork of a process that has imported what is slow.

``worker.py MODULE ...`` imports the modules, then reads one job a line, ``{"folder", "tests",
"limit", "log", "all"}``, and answers with ``{"outcome", "seconds", "failed", "files"}``. ``all``
goes on after a failure, and writes bytecode.
"""

import contextlib
import importlib
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path

_MEMORY = 12 << 30  # bytes that the tests of a mutant may ask for
_BROKEN = 70  # exit status of a run that says nothing about the tests


class _Watch:
    """A plugin of pytest that notes what failed first, and how long each file took."""

    def __init__(self):
        self.failed, self.files = None, {}

    def _note(self, report, failed):
        if failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_collectreport(self, report):
        self._note(report, report.failed)

    def pytest_runtest_logreport(self, report):
        self._note(report, report.failed)
        file = report.nodeid.split("::")[0]
        self.files[file] = self.files.get(file, 0.0) + report.duration


def main() -> None:
    for name in sys.argv[1:]:
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(_run(json.loads(line))), flush=True)


def _run(job: dict) -> dict:
    start = time.monotonic()
    inlet, outlet = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(inlet)
        _test(job, outlet)
    os.close(outlet)
    status = None
    try:
        while status is None and time.monotonic() - start < job["limit"]:
            time.sleep(0.05)
            done, code = os.waitpid(child, os.WNOHANG)
            status = code if done else None
    finally:  # also when interrupted; whatever it started goes with it
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    if status is None:
        os.waitpid(child, 0)
    with os.fdopen(inlet) as file:
        told = file.read()
    answer = json.loads(told) if told else {"failed": None, "files": {}}
    outcome = "timeout" if status is None else "survived" if status == 0 else "killed"
    if status is not None and os.WIFEXITED(status) and os.WEXITSTATUS(status) == _BROKEN:
        outcome = "broken"
    return {"outcome": outcome, "seconds": round(time.monotonic() - start, 1), **answer}


def _test(job: dict, outlet: int) -> None:
    """In the child: run the tests, say how it went, and end."""
    status = _BROKEN
    try:
        os.setsid()
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
        sys.dont_write_bytecode = not job["all"]
        os.chdir(job["folder"])
        import pytest

        watch = _Watch()
        flags = ["-q", "-p", "no:cacheprovider"] + ([] if job["all"] else ["-x"])
        status = int(pytest.main([*flags, *job["tests"]], plugins=[watch]))
        code = sys.modules.get("odam_d2")
        if code and not Path(code.__file__).is_relative_to(job["folder"]):
            status = _BROKEN
            raise RuntimeError(f"tests ran {code.__file__}, which is not in {job['folder']}")
        os.write(outlet, json.dumps({"failed": watch.failed, "files": watch.files}).encode())
    finally:
        sys.stdout.flush()
        os._exit(status)


if __name__ == "__main__":
    main()
