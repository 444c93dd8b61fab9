"""``dptrain audit``: train once with canaries, and hold what an attacker can prove against the claimed epsilon."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack, redirect_stdout
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError
from ..support.files import to_json
from .options import Commands

if TYPE_CHECKING:
    from ..audit import AuditResult
    from ..privacy.plan import PrivacyPlan

EXIT_VIOLATION = 4  # the audit refutes the claim
_OF_THE_PLAN = ("epsilon", "noise_multiplier", "delta", "sample_rate", "steps")


def register(commands: Commands) -> None:
    """Add the command."""
    audit = commands.add_parser(
        "audit",
        help="an empirical lower bound on epsilon, from one run with canaries",
        epilog=f"Exit status {EXIT_VIOLATION}: the audit found a violation. No private data are touched.",
    )
    audit.add_argument(
        "--threat", default="white-box", choices=("white-box", "black-box"), help="what the attacker sees: every "
        "iterate, or the released weights' losses; default %(default)s"
    )  # fmt: skip
    audit.add_argument("--run", type=Path, help="audit the plan of this run, and write beside it")
    audit.add_argument("--epsilon", type=float, help="claimed epsilon (RDP); default 8")
    audit.add_argument("--noise-multiplier", type=float, help="instead of --epsilon")
    audit.add_argument("--delta", type=float, help="chance of failure allowed; default 1e-5")
    audit.add_argument("--sample-rate", type=float, help="chance that one unit is in a step; default 0.5 (black-box 1)")
    audit.add_argument("--steps", type=int, help="number of steps; default 100 (black-box 20)")
    audit.add_argument("--canaries", type=int, help="default 6,000 (black-box 100), fewer where delta is large")
    audit.add_argument(
        "--guesses", type=_whole_numbers, metavar="N[,N]", help="default 10%% of the canaries (black-box half); of "
        "several the best counts, corrected for trying"
    )  # fmt: skip
    audit.add_argument("--confidence", type=float, default=0.95, help="of the bound; default %(default)s")
    audit.add_argument("--model", help="a detector, such as yolo26n.yaml; default a small network (black-box yolo26n)")
    audit.add_argument("--data", type=Path, metavar="YAML", help="train on these public images; default synthetic ones")
    audit.add_argument("--public", action="store_true", help="declare that --data is public")
    audit.add_argument("--url", help="a ledger that has none of these images; default $DPTRAIN_BUDGET_URL or budget.db")
    audit.add_argument("--key", metavar="FILE", help="its key; default $DPTRAIN_BUDGET_KEY or beside an SQLite file")
    audit.add_argument("--imgsz", type=int, default=64, help="side of a detector's images; default %(default)s")
    audit.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1; default %(default)s")
    audit.add_argument("--json", action="store_true", help="print JSON")
    audit.add_argument("-o", "--output", type=Path, help="folder; default audit/<date>_<time>, or that of --run")
    audit.set_defaults(command=_audit)


def _whole_numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not a list of whole numbers such as 100,300") from error


def _audit(options: argparse.Namespace) -> int:
    _check(options)
    from ..audit.result import refuse_overwriting
    from ..audit.run import write_audit

    folder = options.output or options.run or Path(datetime.now().strftime("audit/%Y-%m-%d_%H-%M-%S"))
    refuse_overwriting(folder)
    with redirect_stdout(sys.stderr if options.json else sys.stdout):
        result = _result(options)
        write_audit(result, folder)
    if options.json:
        print(to_json({**result.as_dict(), "output_dir": str(folder)}))
    else:
        for line in (*result.lines(), f"written    {folder}"):
            print(line)
    return EXIT_VIOLATION if result.violation else 0


def _check(options: argparse.Namespace) -> None:
    """Refuse, before torch is imported, what needs no look at anything."""
    given = [f"--{name.replace('_', '-')}" for name in _OF_THE_PLAN if getattr(options, name) is not None]
    if options.run is not None and given:
        raise ConfigError(f"--run has a plan already, and {given[0]} contradicts it: leave one of them out")
    if options.data is not None and not options.public:
        raise ConfigError(
            f"--data {options.data} may be private, and an audit charges nothing for what it trains on: add --public "
            "if the images are public, or leave it out for synthetic scenes"
        )


def _result(options: argparse.Namespace) -> AuditResult:
    from ..audit import audit_training
    from ..run.progress import Progress, make_console
    from ..support.devices import parse_device, usable_device

    device = usable_device(parse_device(options.device, "--device"), "--device")
    plan = _plan(options)
    with ExitStack() as stack:
        on_step = None
        if options.threat == "white-box":  # the other one trains by dptrain.train, which has a bar of its own
            on_step = stack.enter_context(Progress(make_console(), plan)).update
        return audit_training(
            plan,
            threat=options.threat,
            model=options.model,
            data=options.data,
            public=options.public,
            ledger=options.url,
            ledger_key=options.key,
            canaries=options.canaries,
            guesses=options.guesses,
            confidence=options.confidence,
            imgsz=options.imgsz,
            device=device,
            on_step=on_step,
        )


def _plan(options: argparse.Namespace) -> PrivacyPlan:
    from ..audit import default_plan

    if options.run is None:
        given = {name: getattr(options, name) for name in _OF_THE_PLAN if getattr(options, name) is not None}
        return default_plan(options.threat, canaries=options.canaries, **given)
    from ..statement import check_statement
    from ..statement.plan import plan_of

    statement = check_statement(options.run).statement
    steps = statement["mechanism"]["steps"]
    if steps < 1:
        raise ConfigError(f"{options.run}: the run took no step, so there is nothing to audit")
    return replace(plan_of(statement), steps=steps, unit="image")
