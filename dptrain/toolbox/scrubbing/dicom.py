"""DICOM without its patient: the basic application level confidentiality profile of PS3.15, by a list of what stays."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import ConfigError
from .cleaned import Damaged
from .jpeg import clean_jpeg
from .names import Names, is_pseudonym

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

METHOD = "dptrain scrub: DICOM PS3.15 Basic Profile"
_CODE = ("113100", "DCM", "Basic Application Confidentiality Profile")

# What stays. None of it is in table E.1-1 of PS3.15. It holds numbers, pixels, and codes of a closed list (_CODES), so
# that there is no room for a name.
_SHAPE = """
SOPClassUID SamplesPerPixel PlanarConfiguration NumberOfFrames Rows Columns PixelAspectRatio BitsAllocated BitsStored
HighBit PixelRepresentation SmallestImagePixelValue LargestImagePixelValue PixelPaddingValue PixelPaddingRangeLimit
LossyImageCompressionRatio UltrasoundColorDataPresent PixelData
""".split()
_SHOWN = """
RescaleIntercept RescaleSlope WindowCenter WindowWidth PixelIntensityRelationshipSign ModalityLUTSequence
VOILUTSequence LUTDescriptor LUTData SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence
FrameVOILUTSequence PixelValueTransformationSequence PixelMeasuresSequence PlanePositionSequence
PlaneOrientationSequence
""".split()
_WHERE = """
PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing SliceThickness SpacingBetweenSlices SliceLocation
ImagePositionPatient ImageOrientationPatient InstanceNumber SeriesNumber AcquisitionNumber TemporalPositionIdentifier
FrameTime
""".split()
_HOW = """
KVP ExposureTime XRayTubeCurrent Exposure ExposureInuAs DistanceSourceToDetector DistanceSourceToPatient
GantryDetectorTilt RepetitionTime EchoTime InversionTime FlipAngle MagneticFieldStrength EchoTrainLength
""".split()
_PALETTE = [
    f"{part}{colour}PaletteColorLookupTable{end}"
    for colour in ("Red", "Green", "Blue")
    for part, end in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
]
# Defined terms and enumerated values of PS3.3; another value goes, whatever it says.
_CODES = {
    "ImageType": "ORIGINAL DERIVED PRIMARY SECONDARY AXIAL LOCALIZER",
    "Modality": "BI CR CT DX ECG ES GM IO IVOCT IVUS MG MR NM OCT OP OPT OT PT PX RF SC SM US XA XC",
    "PhotometricInterpretation": "MONOCHROME1 MONOCHROME2 PALETTE_COLOR RGB YBR_FULL YBR_FULL_422 YBR_ICT YBR_RCT",
    "BurnedInAnnotation": "YES NO",
    "LossyImageCompression": "00 01",
    "PresentationIntentType": "FOR_PRESENTATION FOR_PROCESSING",
    "VOILUTFunction": "LINEAR LINEAR_EXACT SIGMOID",
    "PresentationLUTShape": "IDENTITY INVERSE",
    "PixelIntensityRelationship": "LIN LOG",
    "Laterality": "R L",
    "ImageLaterality": "R L U B",
    "ViewPosition": "AP PA LL RL RLD LLD RLO LLO CC MLO ML LM LMO XCCL XCCM FB SIO ISO",
    "PatientPosition": "HFP HFS HFDR HFDL FFDR FFDL FFP FFS LFP LFS RFP RFS AFDR AFDL PFDR PFDL",
    "BodyPartExamined": "ABDOMEN ANKLE AORTA ARM BLADDER BRAIN BREAST CALCANEUS CHEST CLAVICLE COLON CSPINE ELBOW EYE "
    "FEMUR FINGER FOOT FOREARM HAND HEAD HEART HIP HUMERUS JAW KIDNEY KNEE LEG LIVER LSPINE LUNG NECK ORBIT PANCREAS "
    "PELVIS PROSTATE RIB SCAPULA SHOULDER SKIN SKULL SPINE SPLEEN STERNUM STOMACH THIGH TOE TSPINE UTERUS WHOLEBODY "
    "WRIST",
}
KEPT = frozenset((*_SHAPE, *_SHOWN, *_WHERE, *_HOW, *_PALETTE, *_CODES))
_KINDS = frozenset("AT CS DS FD FL IS OB OW SL SQ SS UI UL US".split())
_NUMBER = re.compile(r"\s*[-+0-9.eE]{0,16}\s*")

# Elements that an image must have (type 1 or 2), which the profile lets be empty, a dummy, or another UID.
_EMPTY = "AccessionNumber PatientBirthDate PatientSex ReferringPhysicianName StudyDate StudyID StudyTime".split()
_UIDS = "SOPInstanceUID StudyInstanceUID SeriesInstanceUID FrameOfReferenceUID".split()
_PATIENT = ("PatientName", "PatientID")
_NOTES = (
    "PatientIdentityRemoved", "LongitudinalTemporalInformationModified", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
)  # fmt: skip
_DRAWN = ("SC", "US", "ES", "XC", "OT", "IVUS", "OP", "GM", "SM")  # modalities whose pictures often carry writing


@dataclass(frozen=True)
class ScrubbedDicom:
    """A DICOM image without its patient.

    Attributes:
        dataset: What is left, ready to be saved or decoded.
        found: Names of what was removed or replaced, in order; empty for a file that was scrubbed before.
        patient: The pseudonym of its patient: the same for all images of one PatientID, under one key.
        warnings: Why writing may be burned into the pixels, in words.
    """

    dataset: Dataset
    found: tuple[str, ...]
    patient: str
    warnings: tuple[str, ...]

    def to_bytes(self) -> bytes:
        """Return the file, with a preamble of zeros and file meta information of its own."""
        stream = io.BytesIO()
        self.dataset.save_as(stream, enforce_file_format=True)
        return stream.getvalue()


def clean_dicom(data: bytes, names: Names) -> ScrubbedDicom:
    """Take out of a DICOM image all that is not needed to show it.

    Stricter than the profile, which lists what goes (655 attributes in its edition 2026c): here is listed what stays,
    so private tags, overlays, curves, notes, and attributes that are not written yet go too. Instance, series, study
    and frame of reference UIDs are replaced, each by the same new one wherever it is met.

    Raises:
        Damaged: It cannot be read, or holds no pixels.
    """
    try:
        import pydicom
    except ImportError:
        raise ConfigError("DICOM files need the package pydicom: pip install 'dptrain[dicom]'") from None
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.filewriter import correct_ambiguous_vr

    try:
        source = pydicom.dcmread(io.BytesIO(data))
        correct_ambiguous_vr(source, source.original_encoding[1] is not False)
        found, kept = [], Dataset()
        if any(data[:128]):
            found.append("preamble")
        _copy(source, kept, found)
    except Damaged:
        raise
    except Exception as error:  # pydicom fails in many ways on damaged files
        raise Damaged(f"it cannot be read ({type(error).__name__})") from None
    if "PixelData" not in kept or "SOPClassUID" not in kept:
        raise Damaged("it holds no image")
    patient = _identify(source, kept, found, names)
    for name in _FOUND_IN_META:
        if name in source.file_meta:
            found.append(name)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = source.file_meta.TransferSyntaxUID
    meta.MediaStorageSOPClassUID = kept.SOPClassUID
    meta.MediaStorageSOPInstanceUID = kept.SOPInstanceUID
    kept.file_meta = meta
    _clean_pixels(kept, found)
    return ScrubbedDicom(kept, tuple(dict.fromkeys(found)), patient, tuple(_warnings(source)))


_FOUND_IN_META = (
    "SourceApplicationEntityTitle", "SendingApplicationEntityTitle", "ReceivingApplicationEntityTitle",
    "PrivateInformation", "SourcePresentationAddress",
)  # fmt: skip


def _copy(source: Any, kept: Any, found: list[str]) -> None:
    """Copy the elements that stay, into sequences too; name the others that say anything."""
    from pydicom.dataset import Dataset

    for element in source:
        name = element.keyword
        used = name not in _PALETTE or source.get("PhotometricInterpretation") == "PALETTE COLOR"
        if not element.tag.is_private and name in KEPT and used and _is_plain(element):
            if element.VR != "SQ":
                kept.add(element)
                continue
            items = []
            for item in element.value:
                items.append(Dataset())
                _copy(item, items[-1], found)
            setattr(kept, name, items)
        elif not _said_by_us(element, source):
            found.append("private tags" if element.tag.is_private else name or f"tag {element.tag}")


def _is_plain(element: Any) -> bool:
    """Whether a kept element holds what its kind says: a file can put any text anywhere."""
    from pydicom.datadict import dictionary_VR

    if element.VR not in _KINDS or element.VR not in dictionary_VR(element.tag).split(" or "):
        return False
    values = element.value if element.VM > 1 else [element.value]
    if element.VR == "CS":
        known = _CODES[element.keyword].split()
        return all(str(value or "").strip().replace(" ", "_") in (*known, "") for value in values)
    if element.VR in ("DS", "IS"):
        return all(_NUMBER.fullmatch(str("" if value is None else value)) for value in values)
    return element.VR != "UI" or str(element.value).startswith("1.2.840.10008.")


def _said_by_us(element: Any, source: Any) -> bool:
    """Whether an element is one that scrubbing writes: empty, a pseudonym, or the note that it was done."""
    name = element.keyword
    if name in _EMPTY and not element.value:
        return True
    done = source.get("DeidentificationMethod", "") == METHOD
    if name in _NOTES:
        return done
    if name in _PATIENT:
        return not element.value or (done and is_pseudonym(str(element.value)))
    if name in _UIDS:
        return done and str(element.value).startswith("2.25.")
    return False


def _identify(source: Any, kept: Any, found: list[str], names: Names) -> str:
    """Put new identities in the place of the old ones; return the patient's."""
    from pydicom.dataset import Dataset

    old = str(source.get("PatientID", "") or source.get("PatientName", ""))
    done = is_pseudonym(old) and not set(_PATIENT) & set(found)
    patient = old if done else names.of(old or str(source.get("StudyInstanceUID", "")), "patient")
    for name in _PATIENT:
        setattr(kept, name, patient)
    for name in _EMPTY:
        setattr(kept, name, "")
    for name in _UIDS:
        uid = str(source.get(name, ""))
        if uid or name != "FrameOfReferenceUID":
            known = uid.startswith("2.25.") and name not in found
            setattr(kept, name, uid if known else names.uid(uid or f"{name} of {patient}"))
    kept.PatientIdentityRemoved = "YES"
    kept.DeidentificationMethod = METHOD
    kept.LongitudinalTemporalInformationModified = "REMOVED"
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = _CODE
    kept.DeidentificationMethodCodeSequence = [code]
    return patient


def _clean_pixels(kept: Any, found: list[str]) -> None:
    """Cut what follows the pixels, and the comments out of JPEG frames; the pixels stay as they are."""
    from pydicom.encaps import encapsulate, generate_frames

    syntax = kept.file_meta.TransferSyntaxUID
    try:
        frames = int(kept.get("NumberOfFrames", 1) or 1)
        if syntax.is_compressed and not syntax.is_deflated:
            pieces = list(generate_frames(kept.PixelData, number_of_frames=frames))
            if pieces and all(piece[:2] == b"\xff\xd8" for piece in pieces):
                cleaned = [clean_jpeg(piece) for piece in pieces]
                found += [f"{word} in the pixel data" for piece in cleaned for word in piece.found]
                pieces = [piece.data for piece in cleaned]
            kept["PixelData"].value = encapsulate(pieces)
            return
        bits = kept.Rows * kept.Columns * kept.SamplesPerPixel * kept.BitsAllocated * frames
        if kept.PhotometricInterpretation == "YBR_FULL_422":
            bits = bits * 2 // 3
        size = (bits + 7) // 8
        if len(kept.PixelData) > size + size % 2:
            found.append("bytes after the image")
            kept["PixelData"].value = kept.PixelData[:size] + b"\0" * (size % 2)
    except Damaged as error:
        raise Damaged(f"a JPEG frame of it is damaged: {error}") from None
    except Exception as error:
        raise Damaged(f"its pixels cannot be read ({type(error).__name__})") from None


def _warnings(source: Any) -> list[str]:
    """Why a header lets expect writing in the pixels."""
    why = []
    said = str(source.get("BurnedInAnnotation", "")).upper()
    if said == "YES":
        why.append("its header says that writing is burned in")
    elif said != "NO" and str(source.get("Modality", "")) in _DRAWN:
        why.append(f"modality {source.get('Modality')} and no word on whether writing is burned in")
    if str(source.get("RecognizableVisualFeatures", "")).upper() == "YES":
        why.append("its header says that the person can be recognised in it")
    for group in range(0x6000, 0x6020, 2):
        position = source.get((group, 0x0102))
        if position is not None and position.value:
            why.append("an overlay is drawn in unused bits of the pixels")
    return why
