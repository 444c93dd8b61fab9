"""DICOM: by PS3.15 nothing of its table stays, and the pixels do."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from pydicom.datadict import DicomDictionary, RepeatersDictionary, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset

from dptrain.toolbox.scrubbing.cleaned import Damaged
from dptrain.toolbox.scrubbing.dicom import KEPT, METHOD, clean_dicom
from dptrain.toolbox.scrubbing.names import Names, is_pseudonym
from dptrain.toolbox.scrubbing.windowing import training_images, writing

from .pictures import SECRET, dicom, read_dicom

NAMES = Names(b"k" * 32)
TABLE = Path(__file__).with_name("ps3_15_e1_1.txt")


def profile() -> dict[int, str]:
    """Tag to action of table E.1-1."""
    found, action = {}, ""
    for line in TABLE.read_text().splitlines():
        if line.endswith(":"):
            action = line[:-1]
        elif line.startswith("  "):
            found |= {int(tag, 16): action for tag in line.split()}
    return found


def test_nothing_that_the_profile_acts_on_is_kept() -> None:
    table = profile()
    assert len(table) == 652
    assert {keyword_for_tag(tag) for tag in table} & KEPT == set()
    assert all(tag is not None for tag in map(_tag_of, KEPT))


def _tag_of(keyword: str) -> int | None:
    from pydicom.datadict import tag_for_keyword

    return tag_for_keyword(keyword)


_VALUES = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"), SECRET.decode().upper()[:11]),
    "AS": "099Y", "DA": "19991231", "DT": "19991231235959", "TM": "235959.98", "DS": "77.123457", "IS": "771234",
    "UI": "1.2.3.77123457", "AT": 0x00771234,
}  # fmt: skip


def test_of_all_attributes_that_there_are_only_the_listed_ones_survive() -> None:
    """Every element of the dictionary with a value of its own: what is not on the list is not in the file."""
    source = read_dicom(dicom())
    put = set()
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        kind = vr.split(" or ")[0]
        if tag >> 16 in (0, 2) or not keyword or keyword in source or kind in ("NONE",):
            continue
        if kind == "SQ":
            item = Dataset()
            item.PatientComments = SECRET.decode()
            source.add(DataElement(tag, "SQ", [item]))
        elif kind in _VALUES:
            source.add(DataElement(tag, kind, _VALUES[kind]))
        elif kind in ("OB", "OW", "UN", "OD", "OF", "OL", "OV"):
            source.add(DataElement(tag, kind, SECRET.ljust(16, b"\0")))
        else:
            source.add(DataElement(tag, kind, 77))
        put.add(keyword)
    assert len(put) > 4500 and len(RepeatersDictionary) > 50
    from io import BytesIO

    stream = BytesIO()
    source.save_as(stream, enforce_file_format=True)
    scrubbed = clean_dicom(stream.getvalue(), NAMES)
    left = {element.keyword for element in scrubbed.dataset.iterall()}
    noted = """PatientIdentityRemoved LongitudinalTemporalInformationModified DeidentificationMethod
    DeidentificationMethodCodeSequence CodeValue CodingSchemeDesignator CodeMeaning""".split()
    assert left & put <= KEPT | set(noted)
    for element in scrubbed.dataset.iterall():
        if element.keyword in ("LUTData", "PixelData"):
            continue  # tables of numbers are part of the picture
        assert not any(word in str(element.value) for word in ("ightingale", "IGHTINGALE", "19991231", "1.2.3.7712"))
    assert {tag for tag in profile() if tag in scrubbed.dataset} <= _replaced()


def _replaced() -> set[int]:
    """What the profile wants emptied, replaced, or written by who does it."""
    kept = """AccessionNumber PatientBirthDate PatientSex ReferringPhysicianName StudyDate StudyID StudyTime
    SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID PatientName PatientID""".split()
    return {tag for tag in map(_tag_of, kept) if tag is not None}


@pytest.mark.parametrize("implicit", [False, True])
def test_a_patient_is_nowhere_and_the_pixels_are_the_same(implicit: bool) -> None:
    data = dicom(implicit=implicit, PixelPaddingValue=3)
    scrubbed = clean_dicom(data, NAMES)
    out = scrubbed.to_bytes()
    for value in (SECRET, SECRET.upper(), b"20260102", b"18200512", b"1.2.3.7."):
        assert value not in out
    after, before = read_dicom(out), read_dicom(data)
    assert after.PixelData == before.PixelData and np.array_equal(after.pixel_array, before.pixel_array)
    assert not any(out[:128]) and not [element for element in after if element.tag.is_private]
    assert after.PatientIdentityRemoved == "YES" and after.DeidentificationMethod == METHOD
    assert after.DeidentificationMethodCodeSequence[0].CodeValue == "113100"
    assert after.PixelPaddingValue == 3 and after.RescaleIntercept == -1024 and after.WindowWidth == 400
    assert after.file_meta.MediaStorageSOPInstanceUID == after.SOPInstanceUID != before.SOPInstanceUID
    for word in ("PatientName", "InstitutionName", "private tags", "preamble", "StudyInstanceUID"):
        assert word in scrubbed.found
    again = clean_dicom(out, Names(b"other key".ljust(32)))
    assert again.found == () and again.to_bytes() == out


def test_one_patient_and_one_study_stay_one_under_one_key() -> None:
    first, second, other = (
        clean_dicom(dicom(seed=seed, patient=patient), NAMES) for seed, patient in ((0, "7"), (1, "7"), (2, "8"))
    )
    for name in ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        values = [str(found.dataset[name].value) for found in (first, second, other)]
        assert values[0] == values[1] != values[2]
    assert first.dataset.SOPInstanceUID != second.dataset.SOPInstanceUID
    assert is_pseudonym(first.patient) and first.patient == second.patient != other.patient
    assert clean_dicom(dicom(), Names(b"x" * 32)).patient != first.patient
    assert len(first.dataset.StudyInstanceUID) <= 64 and first.dataset.StudyInstanceUID.startswith("2.25.")


def test_an_identity_that_only_looks_scrubbed_is_replaced() -> None:
    data = dicom(PatientID="0123456789abcdef0123", StudyInstanceUID="2.25.7", PatientIdentityRemoved="YES")
    scrubbed = clean_dicom(data, NAMES)
    assert scrubbed.dataset.PatientID != "0123456789abcdef0123" and scrubbed.dataset.StudyInstanceUID != "2.25.7"


def test_text_in_an_element_that_is_for_numbers_goes() -> None:
    source = read_dicom(dicom())
    source.add(DataElement(0x00180060, "LO", SECRET.decode()))  # KVP, a number
    source.add(DataElement(0x00180015, "CS", "NIGHTINGALE"))  # BodyPartExamined, one of a list
    from io import BytesIO

    stream = BytesIO()
    source.save_as(stream, enforce_file_format=True)
    scrubbed = clean_dicom(stream.getvalue(), NAMES)
    assert SECRET not in scrubbed.to_bytes() and {"KVP", "BodyPartExamined"} <= set(scrubbed.found)


def test_what_follows_the_pixels_goes() -> None:
    pixels = np.zeros((24, 32), np.uint16)
    data = dicom(pixels, PixelData=pixels.tobytes() + SECRET + b"\0")
    assert SECRET not in clean_dicom(data, NAMES).to_bytes()


def test_comments_in_jpeg_frames_go() -> None:
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit

    from .pictures import jpeg, photo

    ds = read_dicom(dicom(photo()[..., 0].copy()))
    ds.PixelData = encapsulate([jpeg(photo()[..., 0], comment=SECRET)])
    ds["PixelData"].VR = "OB"
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    from io import BytesIO

    stream = BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    scrubbed = clean_dicom(stream.getvalue(), NAMES)
    assert SECRET not in scrubbed.to_bytes() and "comment in the pixel data" in scrubbed.found
    assert np.array_equal(scrubbed.dataset.pixel_array, ds.pixel_array)


def test_what_is_no_image_is_refused() -> None:
    with pytest.raises(Damaged, match="no image"):
        clean_dicom(dicom(PixelData=None), NAMES)
    with pytest.raises(Damaged):
        clean_dicom(dicom()[:700], NAMES)


def test_the_window_decides_what_is_black_and_white() -> None:
    pixels = np.array([[0, 824, 864, 1064, 1264, 2000]] * 24, np.uint16)  # air, -200, -160, 40, 240, 976 HU
    (shown,) = training_images(clean_dicom(dicom(pixels), NAMES).dataset)
    assert shown[0].tolist() == [0, 0, 0, 128, 255, 255]
    (bone,) = training_images(clean_dicom(dicom(pixels), NAMES).dataset, (500, 1000))
    assert bone[0, 2] == 0 and 50 < bone[0, 4] < 70 and bone[0, 5] in range(240, 256)
    (inverted,) = training_images(clean_dicom(dicom(pixels, PhotometricInterpretation="MONOCHROME1"), NAMES).dataset)
    assert np.array_equal(inverted, 255 - shown)
    plain = dicom(pixels, WindowCenter=None, WindowWidth=None)
    (spread,) = training_images(clean_dicom(plain, NAMES).dataset)
    assert (spread[0, 0], spread[0, -1]) == (0, 255)


def test_frames_and_signed_pixels() -> None:
    stack = np.stack([np.full((24, 32), value, np.int16) for value in (-1000, 40, 900)])
    stack[:, 0, 0], stack[:, 0, 1] = -1000, 1000
    data = dicom(stack, NumberOfFrames=3, RescaleIntercept=0)
    images = training_images(clean_dicom(data, NAMES).dataset)
    assert [int(image[5, 5]) for image in images] == [0, 128, 255]


@pytest.mark.parametrize(("font", "scale"), [(0, 0.4), (1, 0.8), (1, 1.5), (0, 1.0)])
def test_smoothed_letters_of_any_size_are_writing(font: int, scale: float) -> None:
    picture = np.zeros((256, 256), np.uint8)
    cv2.circle(picture, (128, 128), 64, 150, -1)
    assert writing(picture) == []
    cv2.putText(picture, "BRAUN ANNA 4711", (4, 32), font, scale, 255, 1, cv2.LINE_AA)
    assert len(writing(picture)) >= 1


def test_burned_in_writing_is_flagged() -> None:
    pixels = np.random.default_rng(0).normal(800, 150, (256, 320)).clip(0, 1500).astype(np.uint16)
    plain = clean_dicom(dicom(pixels), NAMES)
    assert plain.warnings == () and writing(training_images(plain.dataset)[0]) == []
    text = np.zeros(pixels.shape, np.uint8)
    cv2.putText(text, "NIGHTINGALE 12.05.1820", (5, 20), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1)
    pixels[text > 128] = 4000
    lines = writing(training_images(clean_dicom(dicom(pixels), NAMES).dataset)[0])
    assert len(lines) >= 1 and lines[0][1] < 25 and lines[0][3] < 30
    assert clean_dicom(dicom(BurnedInAnnotation="YES"), NAMES).warnings
    assert clean_dicom(dicom(BurnedInAnnotation=None, Modality="US"), NAMES).warnings
    assert clean_dicom(dicom(BurnedInAnnotation=None), NAMES).warnings == ()


def test_the_table_is_that_of_the_standard() -> None:
    assert profile()[0x00100010] == "Z" and profile()[0x00100020] == "Z/D" and profile()[0x0020000D] == "U"
    assert re.search(r"PS3\.15 2026c", TABLE.read_text())
