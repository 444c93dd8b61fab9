"""Real sweeps on submitit's local executor and on a local Ray: one ledger that adds up, no secret and no name told."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dptrain import BudgetLedger
from dptrain.commands.main import main

from ...conftest import SMALL, dataset_maker
from .weights import weights_hash

TINY = (
    f"model={SMALL} imgsz=32 trainable=head workers=0 steps=1 evaluate_every=1 privacy.sample_rate=0.5 "
    "privacy.expected_batch_size=3 privacy.delta=1e-3 privacy.noise_multiplier=4.0 tracking=disabled"
).split()
SECRETS = {"DPTRAIN_BUDGET_KEY": "c4" * 32, "PGPASSWORD": "hush-hush", "DPTRAIN_SEAL_IDENTITY": "hush-hush"}


@pytest.fixture
def logs() -> Iterator[Path]:
    """Where Ray keeps what its workers say; the path of its sockets must be short."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("launcher", ["submitit", "ray"])
def test_a_sweep_on_an_engine(
    launcher: str, logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Jobs of the same settings; on Ray, whose workers' lines anyone can read, also one with labels in disorder."""
    pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher", reason=f"needs dptrain[{launcher}]")
    monkeypatch.chdir(tmp_path)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("DPTRAIN_BUDGET_URL", f"sqlite:///{tmp_path}/budget.db")
    # Its set-up of logging closes absl's handler, and with it what absl holds, under pytest, for the screen.
    monkeypatch.setenv("SUBMITIT_LOG_LEVEL", "NOCONFIG")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # or Ray makes a token in the home of whoever tests
    data = dataset_maker(tmp_path)(train=3, val=1)
    Path("same.yaml").write_text(data.read_text())
    dataset_maker(tmp_path / "other")(train=3, val=1)
    Path("other/labels/train/anna_b.txt").write_text("no label")
    shutil.copy("other/images/train/000.png", "other/images/train/anna_b.png")
    chosen = {
        "submitit": ["hydra/launcher=submitit_local"],
        "ray": ["hydra/launcher=ray", f"+hydra.launcher.ray.init={{num_cpus:2,_temp_dir:{logs}}}"],
    }[launcher]
    files = "data.yaml,same.yaml" + (",other/data.yaml" if launcher == "ray" else "")
    assert main(["train", *TINY, "-m", *chosen, f"data={files}", "output_dir=s"]) == (2 if launcher == "ray" else 0)
    told = capfd.readouterr()
    if launcher == "ray":
        assert "dptrain: job 2 (data=data) failed: " in told.err and "anna_b" in told.err, "the owner's screen has it"
    assert json.loads(Path("s/summary.json").read_text())["finished"] == 2

    # No two jobs share a draw or its noise, though they have the same settings.
    assert weights_hash(Path("s/0")) != weights_hash(Path("s/1"))

    (reading,) = BudgetLedger(f"sqlite:///{tmp_path}/budget.db").show()
    assert (reading.runs, reading.open_runs) == (2, 0)
    assert main(["budget", "verify"]) == 0

    written = [file for place in (Path("s"), logs) for file in place.rglob("*") if file.is_file()]
    assert any("submitted.pkl" in file.name or "worker" in file.name for file in written)
    for secret in SECRETS.values():
        assert not [file for file in written if secret.encode() in file.read_bytes()]
    public = [file for file in written if "owner" not in file.parts]
    assert not [file for file in public if b"anna_b" in file.read_bytes()]
    assert Path("s/owner").stat().st_mode & 0o077 == 0
