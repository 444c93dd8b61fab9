"""What it costs to fill the last pass of a step up with blank images: ``python -m benchmarks.filled`` prints a table.

Whole clipped sums over draws around an expected batch, as ratios of filled passes to passes of what is left. The
``private`` side is what ``dptrain train`` does, the other one is not safe and only here to compare with.
"""

from __future__ import annotations

import argparse
import math
import statistics

import torch

from .steps import CLASSES, random_batch, take_turns


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="cost of passes that all have one shape")
    parser.add_argument("--model", default="yolo26n")
    parser.add_argument("--pixels", type=int, default=128)
    parser.add_argument("--expected", type=int, default=256, help="expected batch size")
    parser.add_argument("--rate", type=float, default=0.02, help="sample rate, for the spread of a draw")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()

    import dptrain
    from dptrain.detection import load_model, per_image_losses
    from dptrain.detection.memory import physical_batch_size
    from dptrain.gradients.batches import in_pieces

    torch.manual_seed(0)
    module = load_model(f"{args.model}.yaml", CLASSES, norm="group")
    place = torch.device("cpu")
    size = physical_batch_size(module, args.pixels, args.expected, place, sample_rate=args.rate)
    spread = math.sqrt(args.expected * (1 - args.rate))
    draws = [round(args.expected + at * spread) for at in (-1.5, -0.5, 0.5, 1.5)]
    batches = {count: random_batch(count, args.pixels, "cpu") for count in draws}

    def whole(count: int, filled_to: int | None) -> object:
        return [
            dptrain.clipped_gradient_sum(module, per_image_losses, part, clip_norm=1.0, examples_at_once=filled_to)
            for part in in_pieces(batches[count], size)
        ]

    todo = {
        (count, filled): lambda count=count, filled=filled: whole(count, size if filled else None)  # type: ignore[misc]
        for count in draws
        for filled in (True, False)
    }
    seconds = {name: statistics.median(times) for name, times in take_turns(todo, args.repeats).items()}
    print(f"{args.model}, {args.pixels} px, {size} images a pass, {torch.get_num_threads()} threads\n")
    print("| images drawn | blank | time over passes not filled up |\n|---|---|---|")
    for count in draws:
        blank = -count % size
        print(f"| {count} | {blank / (count + blank):.1%} | {seconds[count, True] / seconds[count, False]:.3f} |")
    total = [sum(seconds[count, filled] for count in draws) for filled in (True, False)]
    print(f"| all | | {total[0] / total[1]:.3f} |")


if __name__ == "__main__":
    main()
