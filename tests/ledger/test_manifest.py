"""What makes two training folders the same dataset: their pictures, and nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dptrain import BudgetLedger, DataError
from dptrain.datasets import identity, images
from dptrain.ledger.manifest import Manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return photos(tmp_path / "a")


def photos(folder: Path, count: int = 4, suffix: str = ".jpg") -> Path:
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for number in range(count):
        cv2.imwrite(str(folder / "images" / f"{number}{suffix}"), rng.integers(0, 255, (30, 40, 3), np.uint8))
        (folder / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.2 0.2\n1 0.4 0.4 0.1 0.1\n")
    return folder


def manifest(ledger: BudgetLedger, folder: Path) -> Manifest:
    return ledger.manifest(sorted((folder / "images").iterdir()))


def test_renamed_copied_and_moved_files_are_the_same_dataset(ledger: BudgetLedger, folder: Path) -> None:
    before = manifest(ledger, folder)
    other = folder.parent / "export"
    (other / "images").mkdir(parents=True)
    (other / "labels").mkdir()
    for number in range(4):
        shutil.copy(folder / "images" / f"{number}.jpg", other / "images" / f"photo-{9 - number}.jpeg")
        shutil.copy(folder / "labels" / f"{number}.txt", other / "labels" / f"photo-{9 - number}.txt")
    assert manifest(ledger, other).digest == before.digest


def test_saved_again_without_loss_is_the_same_dataset(ledger: BudgetLedger, folder: Path) -> None:
    before = manifest(ledger, folder)
    for file in sorted((folder / "images").iterdir()):
        cv2.imwrite(str(file.with_suffix(".png")), images.read_image(file))
        file.unlink()
    assert manifest(ledger, folder).digest == before.digest


def test_without_its_exif_data_a_photo_is_the_same(ledger: BudgetLedger, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    file = tmp_path / "images" / "x.png"
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"  # turned by 90 degrees
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8))
    picture.save(file, exif=exif)
    before = manifest(ledger, tmp_path)
    picture.transpose(Image.Transpose.ROTATE_270).save(file)
    assert manifest(ledger, tmp_path).digest == before.digest


def test_turned_and_mirrored_copies_are_the_same_dataset(ledger: BudgetLedger, tmp_path: Path) -> None:
    """Cutting the orientation out of a photo turns its pixels; that buys no fresh budget."""
    folder = photos(tmp_path / "a", suffix=".png")
    pictures = {file: images.read_image(file) for file in sorted((folder / "images").iterdir())}
    before = manifest(ledger, folder)
    for turned in (False, True):
        for flip in (None, 0, 1, -1):
            for file, picture in pictures.items():
                view = cv2.transpose(picture) if turned else picture
                cv2.imwrite(str(file), view if flip is None else cv2.flip(view, flip))
            assert manifest(ledger, folder).digest == before.digest, (turned, flip)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_photo_whose_orientation_was_cut_out_is_the_same(ledger: BudgetLedger, tmp_path: Path, suffix: str) -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8))
    (tmp_path / "images").mkdir()
    found = set()
    for orientation in (None, *range(1, 9)):
        exif = Image.Exif()
        if orientation is not None:
            exif[0x0112] = orientation
        picture.save(tmp_path / "images" / f"x{suffix}", exif=exif)
        found.add(manifest(ledger, tmp_path).digest)
    assert len(found) == 1


def test_a_label_of_another_spelling_or_order_is_the_same_and_another_box_is_not(
    ledger: BudgetLedger, folder: Path
) -> None:
    before = manifest(ledger, folder)
    label = folder / "labels" / "0.txt"
    label.write_text("1 0.40 0.40 0.10 0.10\n\n0 .5 .5 .2 .2")
    assert manifest(ledger, folder).digest == before.digest
    label.write_text("1 0.4 0.4 0.1 0.1\n0 0.5 0.5 0.2 0.21\n")
    changes = manifest(ledger, folder).changes_since(before.units)
    assert (changes.added, changes.removed, changes.relabelled) == (0, 0, 1)


def test_a_missing_and_an_empty_label_file_both_mean_background(ledger: BudgetLedger, folder: Path) -> None:
    (folder / "labels" / "0.txt").write_text("")
    before = manifest(ledger, folder)
    (folder / "labels" / "0.txt").unlink()
    assert manifest(ledger, folder).digest == before.digest


def test_one_changed_pixel_is_another_picture(ledger: BudgetLedger, tmp_path: Path) -> None:
    folder = photos(tmp_path / "a", suffix=".png")
    before = manifest(ledger, folder)
    pixels = images.read_image(folder / "images" / "0.png").copy()
    pixels[0, 0, 0] ^= 1
    cv2.imwrite(str(folder / "images" / "0.png"), pixels)
    changes = manifest(ledger, folder).changes_since(before.units)
    assert (changes.added, changes.removed, changes.relabelled) == (1, 1, 0)


def test_the_same_photo_twice_is_refused_and_one_unit_where_one_group_has_both(
    ledger: BudgetLedger, folder: Path
) -> None:
    shutil.copy(folder / "images" / "0.jpg", folder / "images" / "again.jpg")
    with pytest.raises(DataError, match=r"again\.jpg: is the same picture as .*0\.jpg"):
        manifest(ledger, folder)
    files = sorted((folder / "images").iterdir())
    found = ledger.manifest(files, groups=["p", "q", "r", "s", "p"])
    assert len(found.memberships) == 4


def test_hashes_of_one_ledger_say_nothing_under_anothers_key(folder: Path, tmp_path: Path) -> None:
    first, second = (BudgetLedger(f"sqlite:///{tmp_path / name}.db") for name in "ab")
    assert not manifest(first, folder).units.keys() & manifest(second, folder).units.keys()


def test_known_files_are_not_decoded_again(ledger: BudgetLedger, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = manifest(ledger, folder)
    ledger.create("pets", epsilon=8, delta=1e-5, manifest=known)
    monkeypatch.setattr(identity, "read_image", lambda *_: pytest.fail("decoded"))
    assert manifest(ledger, folder).digest == known.digest


def test_a_file_that_cannot_be_read_is_named(ledger: BudgetLedger, folder: Path) -> None:
    (folder / "images" / "broken.jpg").write_bytes(b"\xff\xd8no")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        manifest(ledger, folder)


def test_progress_is_told_of_every_file(ledger: BudgetLedger, folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    ledger.manifest(sorted((folder / "images").iterdir()), lambda done, total: seen.append((done, total)))
    assert seen[-1] == (4, 4)
