"""What privacy costs on this machine, bar by bar: time and memory as ratios, both sides measured in one run.

    make bench                                      # a few cases, minutes on two cores
    python -m benchmarks --full --name my_machine   # every case, hours on two cores
    python -m benchmarks --rows gradients,memory    # some rows only
    python -m benchmarks --full --resume            # what latest.json lacks, where it was cut off

Every case runs in a process of its own, and what is compared takes turns within every repeat. A ratio is of two times
of the same repeat; a case counts with the median of its repeats. Threads: OMP_NUM_THREADS, or all cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from .bars import Record, bars
from .cases import ROWS, Case, cases
from .machine import commit
from .picture import draw
from .table import for_terminal

RESULTS = Path(__file__).resolve().parent / "results"


def say(text: str) -> None:
    """Report progress, apart from the table."""
    print(text, file=sys.stderr, flush=True)


def child(arguments: list[str], environment: dict[str, str]) -> Any:
    """Return the JSON that a worker prints last; ``RuntimeError`` with its last line where it failed."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.worker", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "YOLO_OFFLINE": "true", **environment},
        check=False,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["nothing on stderr; it may have run out of memory"]
        raise RuntimeError(f"exit {done.returncode}: {last[0]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(case: Case) -> Record:
    """Measure one case, a method at a time where memory is asked for."""
    memory = case.kind in ("memory", "modules memory")
    began = time.perf_counter()
    result: dict[str, Any] = {}
    try:
        if memory:
            for method in case.methods:
                # With one size from which the C library takes and gives back pages, resident memory is what is in use.
                fixed = {"MALLOC_MMAP_THRESHOLD_": "65536"}
                found = child([json.dumps({**case.values(), "methods": [method]})], fixed)
                result.setdefault("left_out", {}).update(found.pop("left_out", {}))
                if found:
                    result.setdefault("peak", {})[method] = found
        else:
            result = child([json.dumps(case.values())], {})
    except RuntimeError as error:
        say(f"  {case.row}: {case.name}: skipped, {error}")
        return {"case": case.values(), "skipped": str(error)}
    for method, reason in result.get("left_out", {}).items():
        say(f"  {case.row}: {case.name}: {method} skipped, it {reason}")
    if not result.get("peak") and memory:
        return {"case": case.values(), "skipped": "; ".join(result["left_out"].values())}
    if set(result) == {"left_out"}:
        return {"case": case.values(), "skipped": "; ".join(result["left_out"].values())}
    say(f"  {case.row}: {case.name}, {case.kind}: {time.perf_counter() - began:.0f} s")
    return {"case": case.values(), "result": result}


def kept(before: dict[str, Any], now: dict[str, Any], parser: argparse.ArgumentParser) -> list[Record]:
    """Return the cases measured before, which must be of the same code on the same machine; skipped ones run again."""
    for what in ("machine", "commit"):
        if before[what] != now[what]:
            parser.error(f"--resume: measured with {what} {before[what]}, and this is {now[what]}; use another --name")
    return [record for record in before["records"] if "skipped" not in record]


def main() -> None:
    """Measure, print the table of bars, write ``benchmarks/results/<name>.json`` and a picture beside it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", dest="size", action="store_const", const="quick", default="quick", help="the default")
    size.add_argument("--full", dest="size", action="store_const", const="full", help="every case; hours")
    size.add_argument("--tiny", dest="size", action="store_const", const="tiny", help="only to see that it runs")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"some of {','.join(ROWS)}")
    parser.add_argument("--only", default="", help="cases whose name has this in it, such as 'yolo26s 32 x 640'")
    parser.add_argument("--repeats", type=int, default=0, help="in the place of each case's own number")
    parser.add_argument("--device", default="cuda", help="of the gpu row, which is skipped where there is none")
    parser.add_argument("--name", default="latest", help="of the files under benchmarks/results")
    parser.add_argument("--resume", action="store_true", help="keep the cases that the file of that name holds")
    options = parser.parse_args()
    rows = options.rows.split(",")
    unknown = [row for row in rows if row not in ROWS]
    if unknown:
        parser.error(f"--rows: {unknown[0]!r} is not one of {', '.join(ROWS)}")
    machine = child(["machine", options.device], {})
    if not machine.pop("cuda") and options.device.startswith("cuda") and "gpu" in rows:
        say("gpu: skipped, torch sees none")
        rows.remove("gpu")

    results: dict[str, Any] = {
        "machine": machine,
        "commit": commit(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(sys.argv[1:]),
        "size": options.size,
        "bars": [],
        "records": [],
    }
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"{options.name}.json"
    if options.resume and file.exists():
        results["records"] = kept(json.loads(file.read_text()), results, parser)
    results["bars"] = [bar.values() for bar in bars(results["records"])]
    measured = [record["case"] for record in results["records"]]
    for row in rows:
        for case in cases(row, options.size, options.device, options.repeats):
            if case.values() in measured or options.only not in case.name:
                continue
            results["records"].append(measure(case))
            results["bars"] = [bar.values() for bar in bars(results["records"])]
            file.write_text(json.dumps(results, indent=1) + "\n")  # after every case: a long run may be cut off
    Console(width=None if sys.stdout.isatty() else 140).print(for_terminal(results))
    draw(results, file.with_suffix(".png"))
    print(f"{file} and .png")


if __name__ == "__main__":
    main()
