"""The demo: a detector of handwritten digits, fine-tuned privately at epsilon 8, next to what it costs.

    python -m experiments.demo        # a few minutes on 2 CPU cores; everything it writes is under runs/demo

It paints the private scenes, measures the public start on the val scenes, fine-tunes it through `dptrain.train` at
epsilon 8, trains the same way without privacy, and prints them side by side.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import dptrain
from dptrain.datasets.images import read_image
from dptrain.detection import load_model
from dptrain.detection.data import load_data
from dptrain.detection.evaluate import predict
from dptrain.statement.results import MAP, MAP50, read_rows
from experiments import recipe
from experiments.digits.public_start import WEIGHTS
from experiments.digits.scenes import SIZE, write_private

Row = tuple[str, dict[str, float], float | None]


def result_table(rows: list[Row], scenes: int) -> Table:
    """Public start first; every other row also says what it gains over it."""
    table = Table(title=f"{scenes} val scenes of real handwriting, no glyph of which was trained on")
    for heading in ("", "mAP50", "mAP50-95", "mAP50 over the start", "training time"):
        table.add_column(heading, justify="left" if not heading else "right")
    start = rows[0][1][MAP50]
    for name, values, seconds in rows:
        gain = "" if seconds is None else f"{values[MAP50] - start:+.3f}"
        spent = "" if seconds is None else f"{seconds:.0f} s"
        table.add_row(name, f"{values[MAP50]:.3f}", f"{values[MAP]:.3f}", gain, spent)
    return table


def draw_curve(path: Path, run: list[dict[str, float]], start: float, plain: float) -> None:
    """mAP50 against the epsilon spent so far, between the public start and the run without privacy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([r["dp/epsilon"] for r in run], [r[MAP50] for r in run], "o-", label="private, as epsilon is spent")
    axes.axhline(plain, color="tab:green", linestyle="--", label="without privacy")
    axes.axhline(start, color="tab:grey", linestyle=":", label="public start")
    axes.set(xlabel=f"epsilon (delta {recipe.DELTA:g}, RDP)", ylabel="mAP50 on val scenes", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)


def draw_predictions(path: Path, data: Path, weights: dict[str, Path], scenes: int = 12) -> None:
    """Two rows of the first val scenes for every model, with its boxes of confidence 0.25 and more."""
    import cv2

    parsed = load_data(data)
    files = parsed.val[:scenes]
    half = len(files) // 2
    rows = []
    for title, file in weights.items():
        found = predict(load_model(file), files, SIZE)
        pictures = [
            draw_boxes(*_enlarged(scene, boxes), parsed.names) for scene, boxes in zip(files, found, strict=True)
        ]
        caption = np.full((28, 2 * SIZE * half, 3), 255, np.uint8)
        cv2.putText(caption, title, (6, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (0, 0, 0), 1, cv2.LINE_AA)
        rows += [caption, np.hstack(pictures[:half]), np.hstack(pictures[half : 2 * half])]
    cv2.imwrite(str(path), np.vstack(rows))


def draw_boxes(image: str | Path | np.ndarray, boxes: np.ndarray, names: dict[int, str]) -> np.ndarray:
    """Draw boxes as ``predict`` returns them on a copy of an image.

    Args:
        image: A file, or uint8 BGR pixels of shape (height, width, 3).
        boxes: Shape (k, 6): x1, y1, x2, y2 in pixels, confidence (NaN hides it), class number.
        names: Class number to name.

    Returns:
        uint8 BGR pixels of the image's shape, ready for ``cv2.imwrite``.
    """
    import cv2
    from ultralytics.utils.plotting import colors

    picture = read_image(Path(image)) if not isinstance(image, np.ndarray) else image.copy()
    width = max(1, round(sum(picture.shape[:2]) / 600))
    size = max(picture.shape[0] / 1000, 0.35)
    for x1, y1, x2, y2, confidence, number in boxes.tolist():
        colour = colors(int(number), bgr=True)
        text = names.get(int(number), str(int(number)))
        if not np.isnan(confidence):
            text += f" {confidence:.2f}"
        corner = round(x1), round(y1)
        cv2.rectangle(picture, corner, (round(x2), round(y2)), colour, width, cv2.LINE_AA)
        (w, h), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, size, width)
        left = min(max(corner[0], 0), max(picture.shape[1] - w, 0))
        base = max(corner[1], h + 2 * width)  # a box at the upper edge carries its text inside
        cv2.rectangle(picture, (left, base - h - 2 * width), (left + w, base), colour, cv2.FILLED)
        cv2.putText(
            picture, text, (left, base - width), cv2.FONT_HERSHEY_SIMPLEX, size, (255, 255, 255), width, cv2.LINE_AA
        )
    return picture


def _enlarged(scene: Path, boxes: NDArray[np.float32]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """A scene and its boxes at twice the size, where a label can be read."""
    import cv2

    image = cv2.resize(cv2.imread(str(scene)), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)
    return image, boxes * np.array([2, 2, 2, 2, 1, 1], dtype=np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description="fine-tune a digit detector privately and compare")
    parser.add_argument("--root", type=Path, default=Path("runs/demo"), help="everything is written under this folder")
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="public start")
    parser.add_argument("--steps", type=int, default=20, help="fewer than the recipe's, to be done in minutes")
    args = parser.parse_args()
    console = Console()
    root: Path = args.root

    shutil.rmtree(root / "private", ignore_errors=True)  # scenes of an older version would otherwise stay among them
    data = write_private(root / "private")
    console.print(f"[bold]1[/] painted the private scenes: {data}")

    start = recipe.evaluate_weights(args.weights, data)
    console.print(f"[bold]2[/] the public start has mAP50 {start.values[MAP50]:.3f} on them; it never saw handwriting")

    console.print(f"[bold]3[/] fine-tuning at epsilon {recipe.EPSILON:g}, delta {recipe.DELTA:g}")
    output = root / time.strftime("private-%Y-%m-%d_%H-%M-%S")
    database = root / "mlflow.db"
    began = time.perf_counter()
    result = dptrain.train(
        **recipe.train_arguments(
            args.weights,
            data,
            output,
            steps=args.steps,
            tracking={"uri": f"sqlite:///{database.as_posix()}", "experiment": "demo"},
        )
    )
    private_seconds = time.perf_counter() - began

    console.print("[bold]4[/] the same without clipping and noise, to see what privacy costs")
    plain, plain_seconds = recipe.train_without_privacy(args.weights, data, args.steps)

    report(console, root, data, args.weights, result, [
        ("public start", start.values, None),
        (f"private, epsilon {result.epsilon:.2f}", result.metrics, private_seconds),
        ("without privacy", plain.values, plain_seconds),
    ])  # fmt: skip


def report(
    console: Console, root: Path, data: Path, weights: Path, result: dptrain.TrainResult, rows: list[Row]
) -> None:
    """Print the table and say where the pictures, the weights and MLflow are."""
    start, private, plain = (values[MAP50] for _, values, _ in rows)
    draw_curve(root / "curve.png", read_rows(result.output_dir / "results.csv"), start, plain)
    draw_predictions(root / "predictions.png", data, {"public start": weights, "private": result.weights})
    console.print(result_table(rows, len(load_data(data).val)))
    console.print(
        f"Privacy: one scene more or less, epsilon {result.epsilon:.2f} (RDP), delta {recipe.DELTA:g}. "
        f"The private model beats its public start by {private - start:+.3f} mAP50."
    )
    console.print(f"Honestly: {recipe.TUNED}.", style="dim")
    for what, path in (
        ("boxes on val scenes", root / "predictions.png"),
        ("mAP50 by epsilon", root / "curve.png"),
        ("weights, open with YOLO(...)", result.weights),
        ("what is promised", result.output_dir / "statement.md"),
    ):
        console.print(f"  {what:30} {path}", soft_wrap=True, highlight=False)
    uri = f"sqlite:///{(root / 'mlflow.db').as_posix()}"
    ui = f".venv/bin/dptrain ui --tracking-uri {uri}"
    console.print(f"  {'epsilon next to mAP':30} {ui}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    main()
