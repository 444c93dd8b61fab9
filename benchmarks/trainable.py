"""What training fewer parameters saves: ``python -m benchmarks.trainable`` prints a table, of one process.

Time and memory of a clipped gradient sum, as ratios to ``trainable=all``; all of them take turns.
"""

from __future__ import annotations

import argparse
import statistics

import torch

from .memory import peak
from .steps import CLASSES, random_batch, take_turns

KINDS: dict[str, dict[str, object]] = {
    "all": {},
    "neck_and_head": {"trainable": "neck_and_head"},
    "head": {"trainable": "head"},
    "head_and_norms": {"trainable": "head_and_norms"},
    "norm_and_bias": {"trainable": "norm_and_bias"},
    "lora (rank 4)": {"trainable": "lora"},
    "lora (rank 4), norm_and_bias": {"trainable": ["lora", "norm_and_bias"]},
    "all, head=one_to_many": {"head": "one_to_many"},
    "all, head=one_to_one": {"head": "one_to_one"},
}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="cost of what trains")
    parser.add_argument("--model", default="yolo26n")
    parser.add_argument("--pixels", type=int, default=320)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()

    import dptrain
    from dptrain.detection import load_model, per_image_losses

    batch = random_batch(args.images, args.pixels, "cpu")
    todo, numbers, memory = {}, {}, {}
    for name, options in KINDS.items():
        torch.manual_seed(0)
        module = load_model(f"{args.model}.yaml", CLASSES, **{"norm": "group", **options})  # type: ignore[arg-type]
        numbers[name] = sum(p.numel() for p in module.parameters() if p.requires_grad)

        def step(module: torch.nn.Module = module) -> object:
            return dptrain.clipped_gradient_sum(module, per_image_losses, batch, clip_norm=1.0)

        todo[name] = step
        step()
        memory[name] = peak(step)
    seconds = {name: statistics.median(times) for name, times in take_turns(todo, args.repeats).items()}
    print(f"{args.model}, {args.images} images of {args.pixels} px, {torch.get_num_threads()} threads\n")
    print("| what trains | numbers | time | memory |\n|---|---|---|---|")
    for name in KINDS:
        ratios = f"{seconds[name] / seconds['all']:.2f} | {memory[name] / memory['all']:.2f}"
        print(f"| {name} | {numbers[name]:,} | {ratios} |")


if __name__ == "__main__":
    main()
