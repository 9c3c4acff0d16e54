"""``make mutate``: its table of tests is complete, its worker tells what tests say."""

import json
import runpy
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HERE = ROOT / "tests/mutation"
MUTATED = ("core", "structures", "evaluation", "analysis", "data", "modeling")


def test_every_module_has_tests_that_are_there():
    table = runpy.run_path(str(HERE / "tests_of.py"))["TESTS"]
    modules = [
        str(path.relative_to(ROOT))
        for package in MUTATED
        for path in (ROOT / "odam_d2" / package).rglob("*.py")
    ]
    assert [m for m in modules if not any(fnmatch(m, pattern) for pattern in table)] == []
    assert [p for p in table if not any(fnmatch(m, p) for m in modules)] == []
    named = {test.partition("::")[::2] for tests in table.values() for test in tests}
    assert [file for file, _ in named if not (ROOT / file).exists()] == []
    functions = {(file, name) for file, name in named if name}
    assert [f for f in functions if f"\ndef {f[1]}(" not in (ROOT / f[0]).read_text()] == []


@pytest.fixture
def worker():
    process = subprocess.Popen(
        [sys.executable, str(HERE / "worker.py"), "pytest", "hypothesis"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    yield process
    process.stdin.close()
    assert process.wait() == 0


@pytest.mark.slow
def test_the_worker_tells_what_the_tests_say(worker, tmp_path):
    """Each change is seen as it is on the disk, and none outlives its run."""
    (tmp_path / "test_sum.py").write_text(
        "from sums import add\n\ndef test(): assert add(2, 3) == 5"
    )
    job = {"folder": str(tmp_path), "tests": ["test_sum.py"], "limit": 20,
           "log": str(tmp_path / "log"), "all": False}  # fmt: skip
    changes = {
        "a + b": "survived", "a - b": "killed", "b + a": "survived", "a +": "killed",
        "__import__('time').sleep(60)": "timeout", "__import__('os').abort()": "killed",
    }  # fmt: skip
    for code, expected in changes.items():
        (tmp_path / "sums.py").write_text(f"def add(a, b):\n    return {code}\n")
        limit = 2 if expected == "timeout" else 20
        worker.stdin.write(json.dumps(job | {"limit": limit}) + "\n")
        worker.stdin.flush()
        answer = json.loads(worker.stdout.readline())
        assert answer["outcome"] == expected, (code, (tmp_path / "log").read_text())
        if code == "a - b":
            assert answer["failed"] == "test_sum.py::test"
