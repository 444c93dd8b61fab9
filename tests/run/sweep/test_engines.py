"""What a launcher is told of a sweep, and what may not be handed to it; what is said when it loses a job."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from dptrain.commands.main import main
from dptrain.errors import ConfigError
from dptrain.run.owner import OWNER
from dptrain.run.sweep.breaks import lost
from dptrain.run.sweep.engines import LOCAL, RAY, go_to, keeps_lines, launcher_of, refuse_secrets, set_up
from dptrain.run.sweep.jobs import Study, SweepJob, SweepRecord
from dptrain.run.sweep.session import Sweep
from dptrain.run.tracking import NoTracker
from dptrain.support.signals import stop_signal

SUBMITIT = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher"
ON_RAY = "hydra_plugins.hydra_ray_launcher.ray_launcher.RayLauncher"


def config_of(target: str, *overrides: str, **settings: Any) -> Any:
    hydra = {
        "launcher": {"_target_": target},
        "runtime": {"choices": {"hydra/launcher": "theirs"}},
        "overrides": {"hydra": list(overrides)},
    }
    return OmegaConf.create({**settings, "hydra": hydra})


def test_a_launcher_is_known_by_its_class() -> None:
    """A cluster's own preset may give it any name."""
    assert launcher_of(config_of(SUBMITIT).hydra) == LOCAL
    assert [keeps_lines(config_of(target).hydra) for target in (SUBMITIT, ON_RAY)] == [True, True]
    joblib = "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher"
    assert not keeps_lines(config_of(joblib).hydra)
    with pytest.raises(ConfigError, match="hydra/launcher=theirs was never tried with dptrain: use one of basic"):
        launcher_of(config_of("hydra_plugins.hydra_rq_launcher.rq_launcher.RQLauncher").hydra)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("budget.url", "postgresql://anna:hush-hush@db.example/ledger"),
        ("budget.url", "postgresql://anna@db.example/ledger?password=hush-hush"),
        ("budget.key", "ab" * 32),
        ("tracking.uri", "https://anna:hush-hush@mlflow.example"),
        ("seal.identity", "AGE-SECRET-KEY-1HUSHHUSH"),
    ],
)
def test_a_secret_is_never_handed_on_nor_shown(key: str, value: str) -> None:
    section, _, name = key.partition(".")
    with pytest.raises(ConfigError) as refused:
        refuse_secrets(config_of(SUBMITIT, f"{key}={value}", **{section: {name: value}}))
    assert str(refused.value).startswith(f"{key} holds a password or a key")
    assert value not in str(refused.value) and "hush" not in str(refused.value)


@pytest.mark.parametrize(
    "value",
    [
        "postgresql://anna@db.example:5432/ledger",
        "postgresql://anna:${oc.env:PASSWORD}@db.example/ledger",
        "${oc.env:DPTRAIN_BUDGET_URL,'sqlite:///budget.db'}",
        "/keys/" + "ab" * 32 + "/ledger.key",
    ],
)
def test_an_address_without_its_password_may_be_handed_on(value: str) -> None:
    refuse_secrets(config_of(SUBMITIT, budget={"url": value}))


def test_what_submitit_writes_goes_to_the_owners_folder(tmp_path: Path) -> None:
    config = config_of(SUBMITIT)
    set_up(config, tmp_path)
    assert config.hydra.launcher.submitit_folder == str(tmp_path / OWNER / "submitit" / "%j")
    assert (tmp_path / OWNER).stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.submitit_folder cannot be chosen"):
        set_up(config_of(SUBMITIT, "hydra.launcher.submitit_folder=/tmp/x"), tmp_path)


def test_a_worker_of_ray_finds_the_sweep_from_wherever_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(ON_RAY)
    assert launcher_of(config.hydra) == RAY
    set_up(config, tmp_path / "it's")
    assert list(config.hydra.overrides.hydra) == [f"hydra.sweep.dir='{tmp_path}/it\\'s'"]
    monkeypatch.chdir("/")
    go_to(str(tmp_path))
    assert Path.cwd() == tmp_path
    with pytest.raises(ConfigError, match="nowhere cannot be entered on this machine"):
        go_to(str(tmp_path / "nowhere"))


def test_a_lost_job_is_one_line_with_the_next_command(tmp_path: Path) -> None:
    gone = type("UncompletedJobError", (RuntimeError,), {"__module__": "submitit.core.utils"})
    sweep = Sweep(SweepRecord(tmp_path, (SweepJob(0, {}, {}),)), "", NoTracker())
    error = lost(gone("all that the job had printed\nimages/anna_b.png"), sweep)
    assert error is not None and "anna_b" not in str(error)
    assert f"the same command with output_dir={tmp_path} resume=true" in str(error)
    study = Sweep(SweepRecord(tmp_path, (), study=Study(("optimizer.lr",), 3)), "", NoTracker())
    assert "resume one by one" in str(lost(gone(), study))
    assert lost(RuntimeError("a bug"), sweep) is None


def test_who_listens_for_the_signal_to_make_place_hears_it_after_the_step() -> None:
    """submitit starts a job again whose process it tells to go; nobody else is stopped by that signal."""
    heard: list[bool] = []
    before = signal.signal(signal.SIGUSR2, lambda *_: heard.append(True))
    try:
        with stop_signal() as stop:
            signal.raise_signal(signal.SIGUSR2)
            assert stop.is_set() and not heard
        assert heard
        with stop_signal():
            pass
        assert heard == [True]
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
        with stop_signal() as stop:
            signal.raise_signal(signal.SIGUSR2)
            assert not stop.is_set()
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_a_sweep_on_slurm_composes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """There is no Slurm to try it on."""
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="needs dptrain[submitit]")
    slurm = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "hydra.launcher.timeout_min=600"]
    assert main(["train", "--cfg", "hydra", "model=m.pt", "data=d.yaml", *slurm]) == 0
    assert "partition: gpu" in capsys.readouterr().out
