"""
Changes the code in a sample of places, one at a time, and asks the tests of that place whether they
notice. ``make mutate`` runs it; CONTRIBUTING.md says how to read what comes out.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import asdict
from fnmatch import fnmatch
from pathlib import Path

from equivalent import EQUIVALENT
from mutants import Mutant, draw
from tests_of import TESTS

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
# Those of the first sample. ``modeling`` came later, and has a sample of its own by ``--files``.
FIRST = ("core", "structures", "evaluation", "analysis", "data")
PACKAGES = (*FIRST, "modeling")
# Imported once, before the tests are run again and again.
PRELOADED = ("torch", "detectron2.engine", "scipy.ndimage", "hypothesis", "pytest", "matplotlib")
TIMES_LONGER, AT_LEAST = 5, 60  # how much longer than unchanged, in seconds at least


def copy_repository(folder: Path) -> None:
    """What git does not ignore, as it is on the disk."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def copy_datasets(source: Path, target: Path) -> None:
    """Generated data sets, as hard links where that is possible: splits are replaced as a whole."""

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:  # on another disk
            shutil.copy2(one, other)

    shutil.rmtree(target, ignore_errors=True)
    if source.is_dir():
        shutil.copytree(source, target, copy_function=link)


class Worker:
    """
    A process that runs tests in a copy of the repository.

    Args:
        folder: the copy.
        python: that has what the tests need.
        datasets: generated data sets to begin with, if there are any.
    """

    def __init__(self, folder: Path, python: str, datasets: Path):
        self.folder, self.datasets = folder, datasets
        copy_datasets(datasets, folder / "output/datasets")
        environment = os.environ | {
            "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "CI": "true",
            "ODAM_DATASETS": str(folder / "output/datasets"),
        }  # fmt: skip
        self._process = subprocess.Popen(
            [python, str(HERE / "worker.py"), *PRELOADED], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def run(self, tests: list[str], limit: float, mutant: Mutant | None = None) -> dict:
        """Run test files, with the code of a mutant if one is given; as ``worker.py`` answers."""
        job = {"folder": str(self.folder), "tests": tests, "limit": limit,
               "log": str(self.folder) + ".log", "all": mutant is None}  # fmt: skip
        if mutant is None:
            return self._ask(job)
        path = self.folder / mutant.file
        code, times = path.read_bytes(), path.stat()
        try:
            path.write_text(mutant.code, "utf-8")
            # Bytecode is matched by time and size: it is that of the unchanged file.
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 10**10))
            return self._ask(job)
        finally:
            path.write_bytes(code)
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
            if mutant.file.startswith("odam_d2/data"):  # it may have generated its own
                copy_datasets(self.datasets, self.folder / "output/datasets")

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _ask(self, job: dict) -> dict:
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        if answer["outcome"] == "broken":
            raise SystemExit(f"error: tests could not be run: {Path(job['log']).read_text()}")
        return answer


def tests_of(mutant: Mutant) -> list[str]:
    return next(tests for pattern, tests in TESTS.items() if fnmatch(mutant.file, pattern))


def reasons(mutants: list[Mutant]) -> list[str | None]:
    """Why a mutant changes nothing that anybody could notice, by ``equivalent.py``."""
    known = {(file, f"-{before}\n+{after}"): why for file, before, after, why in EQUIVALENT}

    def change(mutant: Mutant) -> tuple[str, str]:
        return mutant.file, "\n".join(x[0] + x[1:].strip() for x in mutant.diff.splitlines())

    return [known.get(change(mutant)) for mutant in mutants]


def unchanged(worker: Worker, tests: list[str]) -> dict[str, float]:
    """
    Seconds that each test file, or folder, takes with the code as it is, where all must pass; for
    a test in a file, those of the file.
    """
    found = worker.run(tests, 3600)
    if found["outcome"] != "survived":
        raise SystemExit(f"error: {found['failed']} fails on unchanged code")
    print(f"{len(tests)} tests or files of tests pass in {found['seconds']:.0f} s", flush=True)
    files = found["files"].items()
    of_files = {test: test.partition("::")[0] for test in tests}
    return {test: sum(s for f, s in files if f == file or f.startswith(f"{file}/"))
            for test, file in of_files.items()}  # fmt: skip


def run_all(arguments: argparse.Namespace, mutants: dict[int, Mutant]) -> list[dict]:
    """Results in the order of the sample; each also goes to the screen as it comes."""
    work = arguments.output / "work"
    shutil.rmtree(work, ignore_errors=True)
    copy_repository(work / "0")
    datasets = Path(os.environ.get("ODAM_DATASETS") or ROOT / "output/datasets")
    workers = [Worker(work / "0", arguments.python, datasets)]
    print(f"{len(mutants)} mutants", flush=True)
    tests = sorted({test for m in mutants.values() for test in tests_of(m)})
    seconds = unchanged(workers[0], tests)
    # What this left, bytecode and data sets, is for all that follows.
    workers[0].datasets = work / "datasets"
    copy_datasets(work / "0/output/datasets", work / "datasets")
    for number in range(1, arguments.jobs):
        shutil.copytree(work / "0", work / str(number), ignore=shutil.ignore_patterns("output"))
        workers.append(Worker(work / str(number), arguments.python, work / "datasets"))
    waiting: queue.Queue = queue.Queue()
    for item in mutants.items():
        waiting.put(item)
    results: dict[int, dict] = {}

    def work_off(worker: Worker) -> None:
        while True:
            try:
                number, mutant = waiting.get_nowait()
            except queue.Empty:
                return
            tests = tests_of(mutant)
            limit = AT_LEAST + TIMES_LONGER * sum(seconds[test] for test in tests)
            results[number] = found = worker.run(tests, limit, mutant)
            print(f"{number:4} {found['outcome']:9}{found['seconds']:6.1f} s  {mutant.file}:"
                  f"{mutant.line} {mutant.operator}", flush=True)  # fmt: skip

    threads = [threading.Thread(target=work_off, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for worker in workers:
        worker.close()
    if len(results) < len(mutants):
        raise SystemExit("error: some mutants were not run")
    shutil.rmtree(work)
    return [
        {"number": n} | {k: v for k, v in asdict(m).items() if k != "code"}
        | {k: results[n][k] for k in ("outcome", "seconds", "failed")} | {"equivalent": reason}
        for (n, m), reason in zip(mutants.items(), reasons(list(mutants.values())), strict=True)
    ]  # fmt: skip


def table_of(rows: list[dict]) -> str:
    """A table of figures by package, and every mutant that was not noticed."""
    lines = ["| package | mutants | killed | timed out | equivalent | survived | noticed |",
             "| --- | --- | --- | --- | --- | --- | --- |"]  # fmt: skip
    for package in (*PACKAGES, "all"):
        part = [r for r in rows if package == "all" or r["file"].startswith(f"odam_d2/{package}/")]
        count = Counter(
            "equivalent" if r["outcome"] == "survived" and r["equivalent"] else r["outcome"]
            for r in part
        )
        noticed = count["killed"] + count["timeout"]
        share = f"{100 * noticed / len(part):.0f} %" if part else "-"
        lines.append(
            f"| {package} | {len(part)} | {count['killed']} | {count['timeout']} | "
            f"{count['equivalent']} | {count['survived']} | {share} |"
        )
    for row in rows:
        if row["outcome"] == "survived":
            lines += ["", f"{row['number']}. {row['file']}:{row['line']} {row['operator']}"]
            lines += [f"   Equivalent: {row['equivalent']}"] if row["equivalent"] else []
            lines += ["", "```diff", row["diff"], "```"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=11, help="of the sample (default: 11)")
    parser.add_argument("--count", type=int, default=150, help="of mutants (default: 150)")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time (default: 1)")
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="numbers in the sample")
    default = [f"odam_d2/{package}/*" for package in FIRST]
    parser.add_argument("--files", nargs="+", metavar="PATTERN", default=default,
                        help="of the code to change (default: %(default)s)")  # fmt: skip
    parser.add_argument("--python", default=sys.executable, help="that has what the tests need")
    parser.add_argument("--output", type=Path, default=ROOT / "output/mutation")
    arguments = parser.parse_args()
    arguments.output = arguments.output.resolve()
    arguments.output.mkdir(parents=True, exist_ok=True)
    files = [str(p.relative_to(ROOT)) for p in (ROOT / "odam_d2").rglob("*.py")]
    files = [f for f in files if any(fnmatch(f, pattern) for pattern in arguments.files)]
    mutants = dict(enumerate(draw(ROOT, files, arguments.count, arguments.seed), start=1))
    if arguments.only:
        mutants = {number: mutants[number] for number in arguments.only}
    rows = run_all(arguments, mutants)
    content = {"seed": arguments.seed, "count": arguments.count, "mutants": rows}
    (arguments.output / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    (arguments.output / "results.md").write_text(table_of(rows))
    print(table_of(rows))


if __name__ == "__main__":
    main()
