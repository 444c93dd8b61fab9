"""What in a run's folder is for the data's owner only, in a folder of its own: it is hard to publish by mistake."""

from __future__ import annotations

from pathlib import Path

from ..support.files import write_text

OWNER = "owner"
README = "README.txt"

OF_THE_RUN = """\
Who may have which file of this folder

May be published. Noised, or declared by whoever started the run:
  weights/          the weights, with the statement of what they cost
  statement.*       the privacy statement
  results.csv, per_class.csv, epsilon_vs_map.png
                    metrics on the validation split, which was declared public; of a
                    private one (validation=private), what noised counts say
  config.yaml, settings.json, mlflow_run
                    the settings and names that were declared; they may hold paths of this machine
  steps.journal     one byte for every step that was started; releases.journal: for
                    every noised evaluation on a private validation split
  checkpoint.pt     the noised state of the training, for resume=true

For the data's owner only, since it depends on the private images or on the ledger:
  owner/            the charge of this run, and what the dataset has spent
"""

OF_THE_OWNER = """\
For the data's owner only. Do not publish, do not hand on with the weights.

What is here depends on the private images and on the ledger. It can tell, without any noise, whether an image is in
the training split.

  budget.json           which charge of the ledger is this run's, and the token to resume it
  dataset.txt           what was noticed of the images and labels
  dataset_budget.json   what the dataset has spent, the ledger's own name for it, and what the ledger noticed
  val_budget.json, val_dataset_budget.json
                        the same of a private validation split (validation=private)
"""


OF_A_SWEEP = """\
For the data's owner only. Do not publish, do not hand on with the sweep's tables.

  job_N_error.txt   why a job failed: it may name private files. Its state is in jobs/N.json
"""


def owner_folder(run: Path, readme: str = OF_THE_OWNER) -> Path:
    """Return the owner's folder in a run's, made where it is missing; other users of the machine cannot read it."""
    folder = run / OWNER
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    if not (folder / README).exists():
        write_text(folder / README, readme)
    return folder
