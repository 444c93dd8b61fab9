"""From raw photos to a released model: check, scrub, redact, seal, train, report, release, with real commands.

    python -m experiments.raw_to_released                           # minutes on 2 CPU cores; under runs/raw_to_released
    python -m experiments.raw_to_released --photos 40 --steps 2     # the same in a minute, for a look at the stages

A made-up hospital photographs slips with handwritten digits: a telephone's JPEGs with place and time in their EXIF,
named after the patient, with a sticker of name and date of birth. It wants a detector of the digits that a clinic may
have. Every command is printed with what it answers; docs/raw_to_released.md explains them. The digits are
scikit-learn's, the patients are drawn from two lists of names.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from dptrain.commands import main as cli
from dptrain.run.pretraining.scenes import write_yaml
from experiments import recipe
from experiments.digits.public_start import WEIGHTS
from experiments.digits.scenes import NAMES, paint, split_handwriting
from experiments.painting import SIZE, Boxes, Image
from experiments.pictures import photo_with_exif

PHOTOS, STEPS, BATCH = 700, 12, 128  # 700 is all the handwriting there is
VAL_SHARE, SLIPS = 1 / 3, 4
STICKER = 32  # pixels below the slip
PAGE_SIZE = SIZE + STICKER
REGION = f"0%,{100 * SIZE / PAGE_SIZE:g}%,100%,100%"
FAMILY, GIVEN = ("Abel", "Braun", "Costa", "Dogan", "Ende", "Fink", "Gross"), ("Anna", "Ben", "Carl", "Dora", "Emil")


def photo_of(scene: Image, boxes: Boxes, rng: np.random.Generator) -> tuple[str, bytes, str]:
    """One raw photo: the patient it is named after, the JPEG and its labels; the patient is on the sticker as well."""
    family, given = str(rng.choice(FAMILY)), str(rng.choice(GIVEN))
    born = f"{rng.integers(1930, 2010)}-{rng.integers(1, 13):02}-{rng.integers(1, 29):02}"
    sticker = np.full((STICKER, SIZE, 3), 245, np.uint8)
    for line, text in enumerate((f"{family.upper()} {given}", f"born {born}")):
        cv2.putText(sticker, text, (4, 13 + 14 * line), cv2.FONT_HERSHEY_PLAIN, 0.8, (20, 20, 60), 1, cv2.LINE_AA)
    page = np.vstack([scene, sticker])
    rows = boxes * np.array([1, 1, SIZE / PAGE_SIZE, 1, SIZE / PAGE_SIZE])
    labels = "".join(f"{int(row[0])} {' '.join(f'{value:.6f}' for value in row[1:])}\n" for row in rows)
    return f"{family}_{given}_{born}", photo_with_exif(page, page), labels


def write_raw(root: Path, photos: int, seed: int = 0) -> Path:
    """Write the raw photos, with two accidents among them: one stored twice, under two splits, and one cut off.

    Returns:
        The data.yaml.
    """
    train, val = split_handwriting(seed)
    groups = {"train": train[:photos], "val": val[: round(photos * VAL_SHARE)]}
    written = []
    for number, (split, glyphs) in enumerate(groups.items()):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for index, group in enumerate(glyphs):
            rng = np.random.default_rng([seed, 30 + number, index])
            patient, data, labels = photo_of(*paint(group, rng), rng)
            file = root / "images" / split / f"{patient}_{index:04}.jpg"
            file.write_bytes(data)
            (root / "labels" / split / f"{file.stem}.txt").write_text(labels)
            written.append(file)
    first, second = written[0], written[1]
    for folder, suffix in (("images", ".jpg"), ("labels", ".txt")):
        source = root / folder / "train" / f"{first.stem}{suffix}"
        shutil.copy(source, root / folder / "val" / f"{first.stem}_again{suffix}")
    second.write_bytes(second.read_bytes()[: second.stat().st_size // 2])
    return write_yaml(root, NAMES, "photos of slips; the handwriting is scikit-learn's, the patients are made up")


def run(*arguments: object, status: int = 0) -> None:
    """Print a command, run it here, and end if its exit status is not the one that is expected."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ dptrain {' '.join(words)}", flush=True)
    found = cli.main(words)
    if found != status:
        sys.exit(f"exit status {found}, where {status} was expected")
    if status:
        print(f"(exit status {status})")


@contextlib.contextmanager
def workplace(root: Path) -> Iterator[None]:
    """Work in a folder, with a ledger of its own there: its budget is no business of the ledger that a team shares."""
    before = dict(os.environ)
    os.environ["DPTRAIN_BUDGET_URL"] = "sqlite:///budget.db"
    os.environ.pop("DPTRAIN_BUDGET_KEY", None)
    try:
        with contextlib.chdir(root):
            yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def say(text: str) -> None:
    print(f"\n# {text}", flush=True)


def set_aside(folder: Path, files: Sequence[Path]) -> None:
    """Take images and their labels out of the dataset."""
    folder.mkdir()
    for file in files:
        for found in (file, file.parents[2] / "labels" / file.parent.name / f"{file.stem}.txt"):
            found.rename(folder / found.name)
            print(f"{found} -> {folder}")


def prepare(photos: int) -> None:
    """Raw photos to a sealed dataset of redacted ones."""
    say("1. the raw photos: what is wrong with them?")
    raw = write_raw(Path("raw"), photos)
    run("check", raw, "-o", "check_raw.html", status=3)
    say("a person looks at the page, and takes the cut photo and the second copy out")
    set_aside(Path("set_aside"), [next(raw.parent.rglob(name)) for name in ("*_0001.jpg", "*_again.jpg")])

    say("2. names, places and times go; the table of names is for the data protection officer only")
    run("scrub", raw, "--check", status=3)
    run("seal", "--new-key", "officer.key")
    run("scrub", raw, "-o", "clean", "--key", "scrub.key", "--mapping", "names.csv")
    for file in ("scrub.key", "names.csv"):
        run("seal", file, "--to", public_key("officer.key"))
        Path(file).unlink()

    say("3. the sticker goes: it is at the same place in every photo")
    run("redact", "clean", "-o", "redacted", "--region", REGION)
    shutil.rmtree("clean")
    run("check", "redacted/data.yaml", "-o", "check_clean.html", "--allow", "class balance")

    say("4. a limit for what these photos may ever cost, and they are sealed for the training machine")
    run("seal", "--new-key", "hospital.key")
    run("budget", "create", "slips", "--data", "redacted/data.yaml", "--epsilon", 10, "--delta", recipe.DELTA)
    run("seal", "redacted/data.yaml", "--to", public_key("hospital.key"), "-o", "slips.seal")
    shutil.rmtree("redacted")


def public_key(file: str) -> str:
    """The line that ``dptrain seal --new-key`` wrote into the file for people to copy."""
    return Path(file).read_text().splitlines()[0].removeprefix("# public key: ")


def train(photos: int, steps: int, epsilon: float) -> None:
    """A sealed run on the sealed photos, and its statement."""
    say("5. private training: sealed photos in, sealed weights out")
    shutil.copy(WEIGHTS, "start.pt")
    batch = min(BATCH, photos)
    run(
        "train", "model=start.pt", "data=slips.seal", "output_dir=run", f"imgsz={PAGE_SIZE}",
        "evaluate_every=4", f"steps={steps}",
        f"privacy.epsilon={epsilon:g}", f"privacy.delta={recipe.DELTA:g}", f"privacy.dataset_size={photos}",
        f"privacy.expected_batch_size={batch}", "privacy.clipping=flat",
        f"trainable={recipe.TRAINABLE}", "optimizer.name=adam",
        f"optimizer.lr={recipe.LEARNING_RATE}", f"ema.decay={recipe.EMA}", "workers=0", "physical_batch_size=32",
        "seal.identity=hospital.key", f"seal.recipients=[{public_key('hospital.key')}]",
    )  # fmt: skip
    say("6. what is promised, worked out again from what the run wrote")
    run("statement", "run", "-o", "statement.html")
    run("budget", "show")


def release() -> Path:
    """The weights and their statement, sealed to the clinic; returns the weights as the clinic has them."""
    say("7. the release, sealed to the clinic's key")
    run("seal", "--new-key", "clinic.key")
    run("unseal", "run/weights/last.pt.age", "-o", "release/last.pt", "--identity", "hospital.key")
    for name in ("statement.json", "statement.html"):
        shutil.copy(Path("run", "weights", name), Path("release", name))
    run("seal", "release", "--to", public_key("clinic.key"))
    shutil.rmtree("release")

    say("8. at the clinic")
    Path("clinic").mkdir()
    run("unseal", "release.tar.age", "-o", "clinic/detector", "--identity", "clinic.key")
    run("statement", "clinic/detector", "-o", "clinic/statement.md")
    return Path("clinic", "detector", "last.pt")


def predict(weights: Path) -> None:
    """Stock Ultralytics finds the digits of the clinic's own slips, which nobody trained on."""
    from ultralytics import YOLO

    slips = Path("clinic", "slips")
    slips.mkdir()
    for index, group in enumerate(split_handwriting()[1][-SLIPS:]):
        rng = np.random.default_rng([99, index])
        (slips / f"slip_{index}.jpg").write_bytes(photo_of(*paint(group, rng), rng)[1])
    run("redact", slips, "-o", "clinic/redacted", "--region", REGION)
    print(f"\n$ yolo predict model={weights} source=clinic/redacted imgsz={PAGE_SIZE}")
    for found in YOLO(weights)("clinic/redacted", imgsz=PAGE_SIZE, verbose=False):
        boxes = [f"{found.names[int(box.cls)]} ({float(box.conf):.2f})" for box in found.boxes]
        print(f"{Path(found.path).name}: {', '.join(boxes) or 'nothing'}")
        found.save(Path("clinic", "found", Path(found.path).name))


def main() -> None:
    parser = argparse.ArgumentParser(description="from raw photos to a released model")
    parser.add_argument("--root", type=Path, default=Path("runs/raw_to_released"), help="a new folder for all of it")
    parser.add_argument("--photos", type=int, default=PHOTOS, help=f"photos to train on, at most {PHOTOS}")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--epsilon", type=float, default=recipe.EPSILON)
    options = parser.parse_args()
    if options.root.exists():
        sys.exit(f"{options.root} already exists: choose another --root, or remove it")
    options.root.mkdir(parents=True)
    with workplace(options.root):
        prepare(options.photos)
        train(options.photos, options.steps, options.epsilon)
        predict(release())


if __name__ == "__main__":
    main()
