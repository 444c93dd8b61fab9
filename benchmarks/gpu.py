r"""What privacy costs on a GPU, and whether it holds there: one script for one lease of ten minutes.

    python -m benchmarks.gpu                                  # on a machine with torch, dptrain and a GPU
    python -m benchmarks.gpu --wheels wheels                  # on one with torch alone, and no network
    python -m benchmarks.gpu --device cpu --small             # all its parts on a CPU, in about a minute

Correctness comes first, then whole steps, then the table of gradient steps. Each part is a process of its own with a
time of its own, and is ended when that is over: what it measured until then is kept. The JSON is written after every
line, says what could not be done and why, and is complete when the script ends.

A bare machine: where an import is missing, all wheels of ``--wheels`` are installed by ``pip install --no-index
--find-links FOLDER --no-deps`` into a temporary folder; torch and torchvision must be there already. To fill the
folder (124 MB), on a machine with a network and the same Python and processor:

    pip download --dest wheels --no-deps ultralytics opencv-python-headless numpy scipy cryptography cffi pycparser \
        opacus dp-accounting absl-py attrs opt-einsum mpmath pillow pyyaml tqdm requests charset-normalizer idna \
        certifi urllib3
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

PARTS = {"correctness": 150.0, "whole": 120.0, "table": 250.0}  # seconds of each, at most
_NEEDED = ("torch", "numpy", "ultralytics", "cv2", "cryptography", "scipy", "opacus", "dp_accounting", "yaml", "PIL")


def missing() -> list[str]:
    """Return the imports that are not there."""
    return [name for name in _NEEDED if importlib.util.find_spec(name) is None]


def install(wheels: Path, target: str) -> None:
    """Install every wheel of a folder into ``target``, with nothing fetched; ``SystemExit`` where pip cannot."""
    files = [str(file) for file in sorted(wheels.glob("*.whl")) if not file.name.startswith(("torch-", "nvidia_"))]
    if not files:
        raise SystemExit(f"--wheels {wheels}: no .whl file in it; benchmarks/gpu.py says how to fill it")
    offline = ["--no-index", "--find-links", str(wheels), "--no-deps", "--quiet", "--target", target]
    done = subprocess.run([sys.executable, "-m", "pip", "install", *offline, *files], check=False)
    if done.returncode:
        raise SystemExit(f"--wheels {wheels}: pip ended with status {done.returncode}")


class Results:
    """The JSON file, whole after every line."""

    def __init__(self, file: Path, options: argparse.Namespace) -> None:
        self.file = file
        self.values: dict[str, Any] = {
            "command": " ".join(sys.argv[1:]),
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "device": options.device,
            "small": options.small,
            "machine": {},
            "found": [],
            "not_done": [],
            "ended": False,
        }
        self.write()

    def write(self) -> None:
        """Write all there is."""
        whole = self.file.with_suffix(".part")
        whole.write_text(json.dumps(self.values, indent=1) + "\n")
        whole.replace(self.file)

    def add(self, part: str, line: dict[str, Any]) -> None:
        """Keep one line of a part, and show it."""
        if "machine" in line:
            self.values["machine"] = line["machine"]
        elif "not_done" in line:
            self.not_done(part, line["what"], line["not_done"])
            return
        else:
            self.values["found"].append({"part": part, **line})
            print(f"{part}: " + ", ".join(f"{key} {value}" for key, value in line.items()), flush=True)
        self.write()

    def not_done(self, part: str, what: str, why: str) -> None:
        """Keep what could not be done, and show it."""
        self.values["not_done"].append({"part": part, "what": what, "why": why})
        print(f"{part}: {what}: not done: {why}", flush=True)
        self.write()


def run_part(part: str, seconds: float, results: Results, options: argparse.Namespace) -> None:
    """Run a part in a process of its own, for so many seconds at most."""
    command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--device", options.device]
    command += ["--small"] if options.small else []
    environment = {**os.environ, "YOLO_OFFLINE": "true", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        over = threading.Event()

        def end() -> None:
            over.set()
            process.kill()

        timer = threading.Timer(seconds, end)
        timer.start()
        assert process.stdout is not None
        try:
            for text in process.stdout:
                if text.startswith("{"):
                    results.add(part, json.loads(text))
            status = process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.wait()
        errors.seek(0)
        last = errors.read().strip().splitlines()[-1:] or ["nothing on stderr"]
    if over.is_set():
        results.not_done(part, "the rest", f"its {seconds:.0f} s were over")
    elif status:
        results.not_done(part, "the rest", f"exit {status}: {last[0][:300]}")


def main() -> None:
    """Run all parts, or the one that this process is for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1 or cpu; default %(default)s")
    parser.add_argument("--small", action="store_true", help="small images and few of them, to see that all parts run")
    parser.add_argument("--seconds", type=float, default=570.0, help="for everything; default %(default)s")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install where imports are missing")
    parser.add_argument("--output", type=Path, default=Path("gpu.json"), help="default %(default)s")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        from .gpu_parts import run

        run(options.part, options.device, options.small)
        return
    until = time.monotonic() + options.seconds
    results = Results(options.output, options)
    with tempfile.TemporaryDirectory() as target:
        if missing() and options.wheels:
            install(options.wheels, target)
            sys.path.insert(0, target)
            importlib.invalidate_caches()
        if lacking := missing():
            raise SystemExit(f"{', '.join(lacking)}: not installed; give a folder of wheels: --wheels FOLDER")
        for part, most in PARTS.items():
            left = until - time.monotonic() - 5
            if left < 10:
                results.not_done(part, "all of it", f"the {options.seconds:g} s were over")
                continue
            run_part(part, min(most, left), results, options)
    results.values["ended"] = True
    results.write()
    bad = [line for line in results.values["found"] if line.get("holds") is False]
    print(f"{options.output}: {len(results.values['found'])} lines, {len(results.values['not_done'])} not done")
    if bad or not results.values["found"]:
        raise SystemExit(f"{len(bad)} checks do not hold: " + "; ".join(line["check"] for line in bad))


if __name__ == "__main__":
    main()
