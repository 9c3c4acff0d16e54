"""
Attack the project with generated inputs and say where it gave way.

    python -m tests.attack                          every case of seed 0
    python -m tests.attack --kinds pictures odgt    some kinds
    python -m tests.attack --case pictures/NAME     one case
"""

import argparse
import json
import os
import re
import select
import sys
import time

from tqdm import tqdm

from .case import Case, Running


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.attack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=0, help="of the generators (default: 0)")
    parser.add_argument("--kinds", nargs="+", metavar="KIND", help="by default all")
    parser.add_argument("--case", action="append", metavar="KIND/NAME",
                        help="this case only; * stands for anything")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), metavar="N",
                        help="cases at once (default: the cores)")  # fmt: skip
    parser.add_argument("--json", metavar="FILE", help="write all outcomes to a file")
    parser.add_argument("--faults", action="store_true", help="a table of known faults as well")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    return parser


def chosen(cases: dict[str, Case], asked: list[str] | None) -> dict[str, Case]:
    if asked is None:
        return cases
    found = {}
    for name in asked:
        pattern = re.compile(re.escape(name).replace(r"\*", ".*"))
        found |= {k: case for k, case in cases.items() if pattern.fullmatch(k)}
    return found


def run(cases: dict[str, Case], jobs: int) -> dict[str, dict]:
    """The outcome of each: verdict, words, seconds by the clock, fault that it looks for."""
    waiting, running, outcomes = list(cases.items())[::-1], {}, {}
    with tqdm(total=len(cases), unit="case", smoothing=0.05, disable=None) as bar:
        while waiting or running:
            while waiting and len(running) < jobs:
                name, case = waiting.pop()
                started = Running(case)
                running[started.pipe] = (name, started)
            ready = select.select(list(running), [], [], 0.5)[0]
            late = [p for p, (_, r) in running.items() if r.late()]
            for pipe in {*ready, *late}:
                name, done = running.pop(pipe)
                verdict, words = done.finish()
                outcomes[name] = {
                    "verdict": verdict, "words": words, "fault": done.case.fault,
                    "seconds": round(time.monotonic() - done.started, 2),
                }  # fmt: skip
                if verdict == "wrong":
                    bar.write(f"WRONG {name}: {words}", file=sys.stderr)
                bar.update()
    return outcomes


def report(outcomes: dict[str, dict], seed: int, faults: bool) -> int:
    """Print the table and how to repeat what is wrong; returns how many are."""
    kinds = sorted({name.split("/")[0] for name in outcomes})
    print(f"\n{'kind':14} {'cases':>6} {'right':>6} {'refused':>8} {'WRONG':>6} {'seconds':>8}")
    for kind in [*kinds, ""]:
        rows = [x for name, x in outcomes.items() if not kind or name.split("/")[0] == kind]
        by = {v: sum(x["verdict"] == v for x in rows) for v in ("right", "refused", "wrong")}
        took = sum(x["seconds"] for x in rows)
        print(f"{kind or 'all':14} {len(rows):6} {by['right']:6} {by['refused']:8} "
              f"{by['wrong']:6} {took:8.0f}")  # fmt: skip
    wrong = {name: x for name, x in outcomes.items() if x["verdict"] == "wrong"}
    for name, outcome in sorted(wrong.items()):
        print(f"\n{name}: {outcome['words']}")
        print(f"    python -m tests.attack --seed {seed} --case '{name}'")
    if faults:
        print("\n| fault | cases | wrong | for example |\n| --- | --- | --- | --- |")
        for fault in sorted({x["fault"] for x in outcomes.values()} - {""}):
            names = [n for n, x in outcomes.items() if x["fault"] == fault]
            found = [n for n in names if n in wrong]
            print(f"| {fault} | {len(names)} | {len(found)} | {found[0] if found else ''} |")
    return len(wrong)


def main(argv: list[str] | None = None) -> int:
    args = get_parser().parse_args(argv)
    from .kinds import all_cases, warm  # imports torch, once the arguments are fine

    kinds = args.kinds or (args.case and list(dict.fromkeys(x.split("/")[0] for x in args.case)))
    cases = chosen(all_cases(args.seed, kinds), args.case)
    if args.list:
        print("\n".join(cases))
        return 0
    if not cases:
        print("error: there is no such case; --list names them", file=sys.stderr)
        return 2
    warm({name.split("/")[0] for name in cases})
    outcomes = run(cases, args.jobs)
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"seed": args.seed, "outcomes": outcomes}, file, indent=1)
    return 1 if report(outcomes, args.seed, args.faults) else 0


if __name__ == "__main__":
    sys.exit(main())
