"""The bars: what was asked for, and whether the measured ratios meet it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

Record = dict[str, Any]  # {"case": Case.values(), "result": what the worker printed} or {"case": ..., "skipped": why}


@dataclass(frozen=True)
class Bar:
    """One row of the table.

    Attributes:
        row: Which row of ``benchmarks.cases.ROWS`` it belongs to.
        what: The ratio, in words.
        bar: What is asked for; empty where the ratio is for information.
        least: Least ratio over the cases; each case's is the median of its repeats.
        median: Median over the cases.
        greatest: Greatest over the cases.
        met: Whether the bar is met; None without a bar.
        cases: How many cases.
        worst: The case that is furthest from the bar.
    """

    row: str
    what: str
    bar: str
    least: float
    median: float
    greatest: float
    met: bool | None
    cases: int
    worst: str

    def values(self) -> dict[str, Any]:
        """Return the bar as JSON holds it."""
        return asdict(self)


Ratios = list[tuple[str, float]]  # (case name, ratio)


def bars(records: Iterable[Record]) -> list[Bar]:
    """Judge what was measured; a bar of which nothing was measured is not there."""
    records = [record for record in records if record.get("result")]
    found: list[Bar] = []

    def add(row: str, what: str, ratios: Ratios, bar: str = "", meets: Callable[[list[float]], bool] | None = None,
            low: bool = False) -> None:  # fmt: skip
        if not ratios:
            return
        values = [value for _, value in ratios]
        worst = (min if low else max)(ratios, key=lambda pair: pair[1])[0]
        met = None if meets is None else meets(values)
        found.append(Bar(row, what, bar, min(values), median(values), max(values), met, len(values), worst))

    def of(row: str, *kinds: str) -> list[Record]:
        return [r for r in records if r["case"]["row"] == row and r["case"]["kind"] in kinds]

    def most(limit: float) -> Callable[[list[float]], bool]:
        return lambda values: max(values) <= limit

    def least(limit: float) -> Callable[[list[float]], bool]:
        return lambda values: min(values) >= limit

    times = of("gradients", "time")
    add("gradients", "fused over plain forward and backward", case_ratios(times, "fused", "plain"),
        "median <= 1.10, none > 1.25", lambda v: median(v) <= 1.10 and max(v) <= 1.25)  # fmt: skip
    add("gradients", "fused over Ultralytics' training step", case_ratios(times, "fused", "ultralytics"),
        "<= 1.30", most(1.30))  # fmt: skip
    add("gradients", "Opacus over fused", case_ratios(times, "opacus", "fused"), ">= 2", least(2.0), low=True)
    add("gradients", "one image at a time over plain", case_ratios(times, "microbatch", "plain"))

    memory = of("memory", "memory")
    add("memory", "fused over plain, peak memory", memory_ratios(memory, "fused"), "<= 1.20", most(1.20))
    add("memory", "the same of memory an image (from n to 2n)", slopes(memory), "<= 1.20", most(1.20))
    add("memory", "Opacus over plain, peak memory", memory_ratios(memory, "opacus"))

    add("whole", "whole private step over its gradient part", case_ratios(of("whole", "whole"), "whole", "gradients"),
        "<= 1.10", most(1.10))  # fmt: skip
    add("loader", "images a second: loaded over consumed", case_ratios(of("loader", "loader"), "consume", "load"),
        ">= 1.5", least(1.5), low=True)  # fmt: skip

    logical = of("logical", "logical")
    add("logical", "logical batch: slope of the upper half over the lower", linearity(logical), "0.95 to 1.05",
        lambda v: min(v) >= 0.95 and max(v) <= 1.05)  # fmt: skip
    peaks = logical_memory(of("logical", "logical memory"))
    add("logical", "logical batch over one physical batch, peak memory", peaks, "<= 1.10", most(1.10))

    noise = of("noise", "noise")
    add("noise", "noise over the gradients of 8 images", case_ratios(noise, "noise", "gradients"), "<= 0.50", most(0.5))
    add("noise", "optimizer and average over the same", _updates(noise))

    general = of("modules", "modules time")
    add("modules", "CNN and ViT: fused over plain", case_ratios(general, "fused", "plain"))
    add("modules", "CNN and ViT: Opacus over fused", case_ratios(general, "opacus", "fused"), low=True)
    peaks = memory_ratios(of("modules", "modules memory"), "fused")
    add("modules", "CNN and ViT: fused over plain, peak memory", peaks)

    add("gpu", "GPU: fused over plain", case_ratios(of("gpu", "time"), "fused", "plain"), "<= 1.25", most(1.25))
    add("gpu", "GPU: fused over plain, peak memory", memory_ratios(of("gpu", "memory"), "fused"), "<= 1.30", most(1.3))
    return found


def repeats(record: Record, above: str, below: str) -> list[float]:
    """Return the ratios of one case, one a repeat: both times are of the same repeat."""
    seconds = record["result"].get("seconds", {})
    if above not in seconds or below not in seconds:
        return []
    return [a / b for a, b in zip(seconds[above], seconds[below], strict=True)]


def case_ratios(records: Iterable[Record], above: str, below: str) -> Ratios:
    """Return every case's median ratio."""
    found = ((record["case"]["name"], repeats(record, above, below)) for record in records)
    return [(name, median(values)) for name, values in found if values]


def memory_ratios(records: Iterable[Record], method: str, when: str = "first") -> Ratios:
    """Return every case's peak memory over the plain step's; of its first steps, in which ways are tried out, too."""
    found: Ratios = []
    for record in records:
        peak = record["result"].get("peak", {})
        if method in peak and "plain" in peak:
            found.append((record["case"]["name"], peak[method][when] / peak["plain"][when]))
    return found


def slopes(records: Iterable[Record]) -> Ratios:
    """Return how much more memory an image adds to a fused step than to a plain one, by model."""
    by_model: dict[tuple[str, int], dict[int, Record]] = {}
    for record in records:
        case = record["case"]
        if {"plain", "fused"} <= set(record["result"].get("peak", {})):
            by_model.setdefault((case["model"], case["pixels"]), {})[case["images"]] = record["result"]["peak"]
    found: Ratios = []
    for (model, pixels), peaks in by_model.items():
        for images in sorted(peaks):
            if 2 * images in peaks:
                few, many = peaks[images], peaks[2 * images]
                more = {method: many[method]["later"] - few[method]["later"] for method in ("plain", "fused")}
                found.append((f"{model} {pixels} px", more["fused"] / more["plain"]))
    return found


def linearity(records: Iterable[Record]) -> Ratios:
    """Return the cost of an image in the upper half of the largest batch over that in the batches below it.

    Fixed costs of a step (noise, optimizer) are in neither.
    """
    found: Ratios = []
    for record in records:
        seconds = {int(images): values for images, values in record["result"]["seconds"].items()}
        smallest, *_, half, largest = sorted(seconds)
        ratios = []
        for low, middle, high in zip(seconds[smallest], seconds[half], seconds[largest], strict=True):
            ratios.append((high - middle) / (largest - half) / ((middle - low) / (half - smallest)))
        found.append((record["case"]["name"], median(ratios)))
    return found


def logical_memory(records: Iterable[Record]) -> Ratios:
    """Return the peak memory of steps on the logical batch over that of steps on one physical batch."""
    peaks = {record["case"]["images"]: record["result"]["later"] for record in records}
    if len(peaks) < 2:
        return []
    smallest, largest = min(peaks), max(peaks)
    return [(f"{largest} images in batches of {smallest}", peaks[largest] / peaks[smallest])]


def _updates(records: Iterable[Record]) -> Ratios:
    found: Ratios = []
    for record in records:
        s = record["result"]["seconds"]
        parts = zip(s["optimizer"], s["average"], s["gradients"], strict=True)
        found.append((record["case"]["name"], median((a + b) / c for a, b, c in parts)))
    return found
