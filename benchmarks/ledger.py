"""How long the ledger takes: a run's reservation and settlement, and showing a budget, at 10,000 charges.

    python -m benchmarks.ledger                       # SQLite, minutes
    python -m benchmarks.ledger --url postgresql://user@host/empty_database
    python -m benchmarks.ledger --charges 1000 --name my_machine
    python -m benchmarks.ledger --kinds 1000          # as many noise multipliers, as a search over them leaves

Charges come from a few kinds of runs on three datasets that overlap, as sweeps make them. What is timed is what a run
waits for: both transactions on the disk, on a machine that does whatever else it does. So the time of the processor
is measured too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dptrain import BudgetLedger
from dptrain.ledger.manifest import Manifest, Picture, from_pictures
from dptrain.privacy.accounting import dp_sgd_event

RESULTS = Path(__file__).resolve().parent / "results"
DATASETS = {"all": range(2000), "first": range(1200), "second": range(800, 2000)}
MEASURED = 200
BARS = {"reserve_and_settle_ms": 15.0, "of_that_processor_ms": 15.0, "show_command_ms": 1000.0}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--charges", type=int, default=10_000)
    parser.add_argument("--kinds", type=int, default=8, help="different noise multipliers")
    parser.add_argument("--url", help="default: an SQLite file in a temporary folder")
    parser.add_argument("--name", help="write benchmarks/results/ledger_NAME.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        url = options.url or f"sqlite:///{folder}/budget.db"
        found = measure(url, f"{folder}/budget.key", options.charges, options.kinds)
    for name, value in found.items():
        bar = f"  (bar {BARS[name]:g})" if name in BARS else ""
        print(f"{name:<26} {value:>10.1f}{bar}" if isinstance(value, float) else f"{name:<26} {value:>10}{bar}")
    if options.name:
        record = {
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            **found,
        }
        (RESULTS / f"ledger_{options.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return 0


def measure(url: str, key: str, charges: int, kinds: int = 8) -> dict[str, float | int]:
    """Fill a ledger and time it when it is full."""
    ledger = BudgetLedger(url, key)
    manifests = {name: _pictures(ledger, numbers) for name, numbers in DATASETS.items()}
    for name, manifest in manifests.items():
        ledger.create(name, epsilon=1e6, delta=1e-5, manifest=manifest)
    events = [dp_sgd_event(0.02, 1000, 1.0 + kind / 10) for kind in range(kinds)]
    chosen = list(manifests.values())

    def run(number: int) -> None:
        charge = ledger.reserve(events[number % kinds], chosen[number % 3], name=f"run {number}")
        charge.settle(1000 - number % 7)

    run(0)
    empty = [_milliseconds(lambda n=n: run(n)) for n in range(1, 50)]
    for number in range(50, charges):
        run(number)
        if number % 500 == 0:
            print(f"{number} of {charges} charges", file=sys.stderr, flush=True)
    begin = time.process_time()
    full = [_milliseconds(lambda n=n: run(n)) for n in range(charges, charges + MEASURED)]
    of_processor = (time.process_time() - begin) / MEASURED * 1000
    at_work = ledger.reserve(events[0], chosen[0], name="at work", leased=0)
    leases = [_milliseconds(lambda n=n: at_work.advance(n)) for n in range(1, 101)]
    at_work.settle(100, "stopped")
    command = [sys.executable, "-m", "dptrain.commands.main", "budget", "show", "--url", url, "--key", key]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    shows = [_milliseconds(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(5)]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    show_processor = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / 5 * 1000
    return {
        "charges": charges,
        "kinds": kinds,
        "reserve_and_settle_ms": statistics.median(full),
        "of_that_processor_ms": of_processor,
        "worst_of_200_ms": max(full),
        "when_empty_ms": statistics.median(empty),
        "lease_ms": statistics.median(leases),
        "show_ms": _milliseconds(ledger.show),
        "show_command_ms": statistics.median(shows),
        "show_command_processor_ms": show_processor,
        "history_last_20_ms": _milliseconds(lambda: ledger.history("all", 20)),
        "verify_ms": _milliseconds(ledger.verify),
        "register_100k_pictures_ms": _milliseconds(lambda: _register(ledger)),
    }


def _register(ledger: BudgetLedger) -> None:
    many = _pictures(ledger, range(10_000, 110_000))
    ledger.create("many", epsilon=8.0, delta=1e-6, manifest=many)


def _pictures(ledger: BudgetLedger, numbers: range) -> Manifest:
    def hashed(text: str) -> bytes:
        return hashlib.sha256(text.encode()).digest()

    return from_pictures(
        ledger._store.key, [Picture(hashed(f"file {n}"), hashed(f"unit {n}"), hashed("labels")) for n in numbers]
    )


def _milliseconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    return (time.perf_counter() - begin) * 1000


if __name__ == "__main__":
    raise SystemExit(main())
