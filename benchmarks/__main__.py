"""What a private gradient step costs: time and memory as ratios to the plain step, measured in one run.

    make bench                                   # a few minutes
    python -m benchmarks --full                  # every model, size and batch of the table; an hour on two cores
    python -m benchmarks --models yolo26n.yaml --cases 320x8 640x8 --device cuda

A case ``320x8`` is eight images of 320 px. Every case runs in a process of its own, and the methods take turns within
every repeat. Ratios are of the same repeat; their median counts, with the least and the greatest beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from .steps import METHODS

RESULTS = Path(__file__).resolve().parent / "results"
QUICK = (("yolo26n.yaml",), ("128x64", "320x8", "320x32", "640x8"))
FULL = (
    ("yolo26n.yaml", "yolo11n.yaml", "yolov8n.yaml", "yolo26s.yaml"),
    ("128x64", "320x8", "320x32", "640x8", "640x32"),
)


def measure(case: list[str], environment: dict[str, str]) -> Any:
    """Run one case in a process of its own; None if it ran out of memory or failed."""
    command = [sys.executable, "-m", "benchmarks.steps", *case]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    if done.returncode:
        print(f"{' '.join(case)}: exit {done.returncode} {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        return None
    return json.loads(done.stdout.strip().splitlines()[-1])


def machine(device: str) -> str:
    """Say what was measured on."""
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    return f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def ratios(seconds: dict[str, list[float]], method: str, base: str) -> dict[str, float]:
    """Return the median, least and greatest of the repeats' ratios."""
    values = [a / b for a, b in zip(seconds[method], seconds[base], strict=True)]
    return {"median": median(values), "least": min(values), "greatest": max(values)}


def draw(rows: list[dict[str, Any]], file: Path, title: str) -> None:
    """Draw time and memory over the plain step, a group of bars a case."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    figure.suptitle(title, fontsize=9)
    labels = [f"{row['model'].removesuffix('.yaml')}\n{row['case']}" for row in rows]
    for place, (key, heading) in enumerate((("time", "time / plain"), ("memory", "peak memory / plain"))):
        axes = figure.add_subplot(2, 1, place + 1)
        methods = [m for m in METHODS if m != "plain" and any(m in row[key] for row in rows)]
        width = 0.8 / max(1, len(methods))
        for number, method in enumerate(methods):
            heights = [_height(row[key].get(method)) for row in rows]
            axes.bar([i + width * number for i in range(len(rows))], heights, width, label=method)
        axes.axhline(1.0, color="black", linewidth=0.8)
        axes.set_xticks([i + 0.4 - width / 2 for i in range(len(rows))], labels, fontsize=8)
        axes.set_ylabel(heading)
        axes.legend(fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def _height(value: Any) -> float:
    return value["median"] if isinstance(value, dict) else (value or 0.0)


def main() -> None:
    """Measure, print a table, write ``benchmarks/results/<name>.json`` and a picture beside it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--cases", nargs="+", help="such as 320x8: eight images of 320 px")
    parser.add_argument("--full", action="store_true", help="every model and case")
    parser.add_argument("--methods", nargs="+", default=[m for m in METHODS if m != "plain"], choices=METHODS)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; default: all")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--name", default="latest")
    options = parser.parse_args()
    environment = {"OMP_NUM_THREADS": str(options.threads)} if options.threads else {}
    models, cases = FULL if options.full else QUICK
    methods = ["plain", *(m for m in options.methods if m != "plain")]
    where = machine(options.device)
    rows: list[dict[str, Any]] = []
    table = Table(title=f"over the plain step (median, least-greatest), {where}", title_justify="left")
    for heading in ("model", "case", "plain s", *methods[1:], *(f"{m} memory" for m in methods[1:])):
        table.add_column(heading, justify="left" if heading in ("model", "case") else "right")
    for model in options.models or models:
        for case in options.cases or cases:
            size, images = case.split("x")
            tail = [options.device, ",".join(methods), str(options.repeats)]
            seconds = measure([model, size, images, "time", *tail], environment)
            if seconds is None:
                continue
            time = {m: ratios(seconds, m, "plain") for m in methods[1:]}
            memory: dict[str, float] = {}
            if not options.no_memory:
                peak = {m: measure([model, size, images, m, options.device], environment) for m in methods}
                if peak["plain"]:
                    memory = {m: peak[m] / peak["plain"] for m in methods[1:] if peak[m]}
            row = {
                "model": model,
                "case": case,
                "plain_seconds": median(seconds["plain"]),
                "time": time,
                "memory": memory,
            }
            rows.append(row)
            table.add_row(
                model.removesuffix(".yaml"),
                case,
                f"{row['plain_seconds']:.2f}",
                *(f"{time[m]['median']:.2f} ({time[m]['least']:.2f}-{time[m]['greatest']:.2f})" for m in methods[1:]),
                *(f"{memory[m]:.2f}" if m in memory else "-" for m in methods[1:]),
            )
            print(f"measured {model} {case}", file=sys.stderr, flush=True)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{options.name}.json").write_text(json.dumps({"machine": where, "rows": rows}, indent=1) + "\n")
    draw(rows, RESULTS / f"{options.name}.png", where)
    print(f"{RESULTS / options.name}.json and .png")


if __name__ == "__main__":
    main()
