"""``dptrain pretrain``: a public start for private runs."""

from __future__ import annotations

from .options import Commands


def register(commands: Commands) -> None:
    """Add the command's line to ``dptrain --help``; its arguments are KEY=VALUE and go to :func:`pretrain` unparsed."""
    commands.add_parser("pretrain", help="train a public start: dptrain pretrain model=yolo26n.yaml data=public.yaml")


def pretrain(arguments: list[str]) -> int:
    """Run ``dptrain pretrain ARGUMENTS``."""
    if "-h" in arguments or "--help" in arguments:
        print(_help())
        return 0
    from ..run.pretraining.schema import from_arguments, resolve

    config = resolve(from_arguments(arguments))  # before torch is imported: a wrong value is told at once

    from ..run.pretraining.run import pretrain_from_config

    pretrain_from_config(config)
    return 0


def _help() -> str:
    from ..run.pretraining.schema import PretrainConfig
    from ..settings.keys import default_of, keys

    lines = [
        "usage: dptrain pretrain [KEY=VALUE ...] [--debug]",
        "",
        "  dptrain pretrain model=yolo26n.yaml data=public.yaml epochs=100",
        "  dptrain pretrain model=yolo26n.yaml scenes.generator=experiments.cells.scenes imgsz=192 epochs=30",
        "",
        "Trains WITHOUT privacy: only on images that anyone may have. Images that a ledger knows are refused.",
        "Then: dptrain train model=OUTPUT_DIR/weights/last.pt ...",
        "",
        "keys:",
    ]
    section = ""
    for name, item in keys(PretrainConfig):
        if name.rpartition(".")[0] != section:
            section = name.rpartition(".")[0]
            lines.append("")
        default = f" ({text})" if (text := default_of(item)) else ""
        lines.append(f"  {name:<24} {item.metadata['help']}{default}")
    return "\n".join(lines)
