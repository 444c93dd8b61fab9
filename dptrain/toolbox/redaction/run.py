"""Redaction of files, folders and streams: the model works while pictures are read before it and written behind it."""

from __future__ import annotations

import math
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ...datasets.data_yaml import YAML_SUFFIXES
from ...datasets.images import read_image
from ...datasets.labels import plain_labels
from ...errors import ConfigError, DataError, DptrainError
from ...support.files import file_hash, refuse_unwritable, write_atomically, write_text
from ...support.released import found_start
from ...support.signals import stop_signal
from .dataset import Dataset
from .frame_delay import FrameDelay
from .images import write_image
from .methods import redact_pixels
from .report import BOXES, REPORT, SHEET, BoxTable, FileReport, RedactionReport, write_report
from .settings import Box, RedactionSettings, grown
from .sheet import ContactSheet
from .sources import RedactionJob, find_jobs, refuse_report, refuse_suffix
from .threads import BackgroundWriter, Prefetcher, mapped_ahead
from .video import Camera, Decoded, Frame, Video, VideoWriter, need_av, open_stream

if TYPE_CHECKING:
    from ...detection.finding import Finder, PreparedImage

_WORKERS = max(2, min(8, (os.cpu_count() or 1)))  # threads that decode images, and as many that encode them
OnFile = Callable[[FileReport, int, int], None]


def redact(
    source: str | Path,
    output: str | Path | None = None,
    *,
    weights: str | Path | None = None,
    in_place: bool = False,
    overwrite: bool = False,
    report: str | Path | None = None,
    frames: int | None = None,
    seconds: float | None = None,
    on_file: OnFile | None = None,
    **settings: Any,
) -> RedactionReport:
    """Redact objects and fixed regions of images, folders, videos and camera streams.

    Every output is encoded afresh from redacted pixels, so EXIF, places, dates and thumbnails are gone, and is written
    atomically. A file that cannot be redacted is not written and stands as ``failed`` in the report. Redaction is
    **not** differential privacy: it hides what the detector finds, and promises nothing about what it misses.

    Args:
        source: An image, a video, a folder, a data.yaml, a camera's number, or the address of a stream (rtsp://,
            http://, ...). With a data.yaml, in a folder too, or where a folder holds images and labels, those go along.
        output: The file, or for a folder the folder, to write to.
        weights: YOLO weights that find what is redacted; None where only ``regions`` are.
        in_place: Write over the originals, instead of ``output``.
        overwrite: Write over other files that are there.
        report: Folder of the report; default the output's name with ``.redaction`` behind it.
        frames: After how many a stream ends; else when it stops or the process gets SIGINT.
        seconds: After how many it ends.
        on_file: Called after each file with its report, its number and how many there are.
        **settings: Of :class:`dptrain.toolbox.redaction.RedactionSettings`.

    Returns:
        The report, whose files are written as well.

    Raises:
        ConfigError: A setting is wrong, or a file would be overwritten.
        DataError: There is no such source; or the source is one file, and it cannot be redacted.
        ModelError: The weights cannot be used.
        KeyboardInterrupt: It was stopped; the report says what was not done.
    """
    chosen = RedactionSettings(**settings)
    _check(weights, chosen)
    jobs, dataset = find_jobs(
        str(source), None if output is None else Path(output), in_place=in_place, overwrite=overwrite
    )
    for name, value in (("frames", frames), ("seconds", seconds)):
        if value is not None and (jobs[0].kind != "stream" or not value > 0):
            raise ConfigError(f"{name}={value}: it ends a stream, after more than 0; files are redacted whole")
    if any(job.kind in ("video", "stream") for job in jobs):
        need_av()
    place = Path(source if output is None else output)
    if output is None and place.suffix.lower() in YAML_SUFFIXES:
        place = place.parent
    if place.name in ("", ".."):  # of a folder that is called by a dot or two
        place = place.resolve()
    folder = Path(report) if report is not None else place.with_name(f"{place.name}.redaction")
    refuse_report(folder, (REPORT, BOXES, SHEET), str(source), overwrite)
    if output is not None:
        refuse_unwritable(Path(output), "-o")
    refuse_unwritable(folder, "--report")
    weights = None if weights is None else found_start(weights, "--weights")
    finder = _finder(weights, chosen)
    found = RedactionReport(
        chosen.as_dict(),
        None if weights is None else str(weights),
        None if weights is None else file_hash(Path(weights)),
        folder,
        [FileReport(job.name, kind=job.kind, status="skipped" if job.kind == "other" else "not done") for job in jobs],
    )
    with stop_signal() as stop:
        work = _Redaction(finder, chosen, found, jobs, on_file, stop, frames or math.inf, seconds or math.inf)
        try:
            work.run()
            if stop.is_set() and jobs[0].kind != "stream":
                raise KeyboardInterrupt
            if dataset is not None and output is not None:
                _carry(dataset, Path(output), jobs, found)
        finally:
            if len(jobs) > 1 or found.files[0].frames:
                write_report(found, work.table)
                work.sheet.write(folder / SHEET)
            work.table.close()
    return found


def _carry(dataset: Dataset, output: Path, jobs: Sequence[RedactionJob], found: RedactionReport) -> None:
    """Write the data.yaml, which names the images that were written, after the lists that it needs."""
    written = {
        job.output.relative_to(output)
        for job, entry in zip(jobs, found.files, strict=True)
        if job.kind == "image" and entry.output
    }
    if written:
        for file, text in dataset.outputs(output, written).items():
            write_text(file, text)
        found.data = str(output / "data.yaml")


def _check(weights: str | Path | None, settings: RedactionSettings) -> None:
    if weights is None and not settings.regions:
        raise ConfigError("nothing to redact: give weights that find it, or a region")
    if weights is None and settings.classes is not None:
        raise ConfigError("classes need weights that find them")


def _finder(weights: str | Path | None, settings: RedactionSettings) -> Finder | None:
    if weights is None:
        return None
    from ...detection.finding import Finder
    from ...support.devices import parse_device, usable_device

    device = usable_device(parse_device(settings.device))
    return Finder(weights, settings.classes, imgsz=settings.imgsz, conf=settings.conf, device=device)


@dataclass
class _Redaction:
    """One call of :func:`redact`: everything is known, and nothing is written yet."""

    finder: Finder | None
    settings: RedactionSettings
    report: RedactionReport
    jobs: Sequence[RedactionJob]
    on_file: OnFile | None
    stop: threading.Event
    frames: float
    seconds: float
    table: BoxTable = field(default_factory=BoxTable)
    sheet: ContactSheet = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _finished: int = 0

    def __post_init__(self) -> None:
        self.sheet = ContactSheet(searched=self.finder is not None)

    def run(self) -> None:
        """Images first, in batches; then the videos, one after the other."""
        entries = list(zip(self.jobs, self.report.files, strict=True))
        self._images([(job, entry) for job, entry in entries if job.kind == "image"])
        for job, entry in entries:
            if job.kind in ("video", "stream") and not self.stop.is_set():
                try:
                    refuse_suffix(job)
                    self._video(job, entry)
                except DptrainError as error:
                    self._fail(entry, error)

    def _fail(self, entry: FileReport, error: DptrainError) -> None:
        if not isinstance(error, DataError):
            raise error  # of the model, of the settings: the next file would meet it as well
        entry.status, entry.reason, entry.output = "failed", str(error), ""
        if entry.label_file:
            Path(entry.label_file).unlink(missing_ok=True)
            entry.label_file = ""
        self._tell(entry)
        if len(self.jobs) == 1:
            raise error

    def _tell(self, entry: FileReport) -> None:
        self._finished += 1
        if self.on_file is not None:
            self.on_file(entry, self._finished, sum(job.kind != "other" for job in self.jobs))

    # images -----------------------------------------------------------------------------------------------------------

    def _images(self, entries: Sequence[tuple[RedactionJob, FileReport]]) -> None:
        """Pictures of one canvas size make a batch; what is left over at the end makes smaller ones."""
        waiting: dict[tuple[int, ...], list[_Picture]] = defaultdict(list)
        depth = 2 * self.settings.batch_size
        with (
            BackgroundWriter(_WORKERS, depth) as writer,
            mapped_ahead(self._read, entries, _WORKERS, depth) as pictures,
        ):
            for (_, entry), future in pictures:
                if self.stop.is_set():
                    return
                try:
                    picture = future.result()
                except DataError as error:
                    self._fail(entry, error)
                    continue
                key = () if picture.prepared is None else picture.prepared.planes.shape
                waiting[key].append(picture)
                if len(waiting[key]) == self.settings.batch_size:
                    self._batch(waiting.pop(key), writer)
            for rest in waiting.values():
                if self.stop.is_set():
                    return
                self._batch(rest, writer)

    def _read(self, task: tuple[RedactionJob, FileReport]) -> _Picture:
        job, entry = task
        refuse_suffix(job)
        image = read_image(Path(job.source), strict=True)
        prepared = None if self.finder is None else self.finder.prepare(image)
        labels = None if job.labels is None else plain_labels(job.labels[0], job.keypoints)
        return _Picture(job, entry, image, prepared, labels)

    def _batch(self, pictures: list[_Picture], writer: BackgroundWriter) -> None:
        found = self._find([picture.prepared for picture in pictures], [picture.image for picture in pictures])
        for picture, boxes in zip(pictures, found, strict=True):
            writer.put(self._write, picture, boxes)

    def _write(self, picture: _Picture, boxes: list[Box]) -> None:
        entry = picture.entry
        try:
            boxes = [*self._regions(picture.image), *boxes]
            redact_pixels(picture.image, boxes, self.settings.method, self.settings.cells)
            if picture.labels is not None and picture.job.labels is not None:  # first: an image alone is background
                write_text(picture.job.labels[1], picture.labels)
                entry.label_file = str(picture.job.labels[1])
            write_image(picture.job.output, picture.image)
        except DataError as error:
            with self._lock:
                self._fail(entry, error)
            return
        with self._lock:
            entry.count(boxes)
            entry.output = str(picture.job.output)
            entry.done()
            self.table.add(entry.source, 0, math.nan, boxes)
            self.sheet.add(entry.source, picture.image, boxes)
            self._tell(entry)

    # videos -----------------------------------------------------------------------------------------------------------

    def _video(self, job: RedactionJob, entry: FileReport) -> None:
        keep = self.settings.audio == "keep"
        video = open_stream(str(job.source), keep) if job.kind == "stream" else Video(job.source, keep)
        try:
            write_atomically(job.output, lambda stream: self._frames(video, job, entry, stream))
        finally:
            video.close()
        entry.output, entry.unreadable = str(job.output), video.unreadable
        entry.done()
        self._tell(entry)

    def _frames(self, video: Video | Camera, job: RedactionJob, entry: FileReport, stream: IO[bytes]) -> None:
        """Read, find, hold and write every frame; whatever fails, the file that was begun is thrown away.

        One thread decodes, one encodes, some make and take pixels between them, and this one asks the model.
        """
        depth = self.settings.batch_size
        batch: list[_Shot] = []

        def prepare(item: Any) -> _Shot | None:
            if not isinstance(item, Decoded):
                return None
            frame = video.picture(item)
            return _Shot(frame, None if self.finder is None else self.finder.prepare(frame.image))

        with (
            Prefetcher(video, depth, video.live) as items,
            mapped_ahead(prepare, items, _WORKERS, depth) as shots,
            VideoWriter(stream, job.output.suffix, video) as out,
            ThreadPoolExecutor(_WORKERS) as pool,
            BackgroundWriter(1, depth) as writer,
        ):

            def emit(frame: Frame, boxes: list[Box]) -> None:
                writer.put(self._encode, out, entry, frame, pool.submit(self._redacted, out, frame, boxes), video)

            delay = FrameDelay(self.settings, emit)
            for item, future in shots:
                shot = future.result()
                if shot is None:
                    writer.put(out.sound, item)
                    continue
                batch.append(shot)
                ended = job.kind == "stream" and self._is_over(delay.taken + len(batch), shot.frame, video)
                if len(batch) == self.settings.batch_size or ended:
                    self._take(batch, delay)
                    batch.clear()
                if ended:
                    break
                if self.stop.is_set():
                    raise KeyboardInterrupt
            else:
                entry.reason = video.broken
            self._take(batch, delay)
            delay.close()
        entry.dropped = items.dropped

    def _is_over(self, taken: int, frame: Frame, video: Video | Camera) -> bool:
        return taken >= self.frames or float(frame.pts * video.time_base) >= self.seconds or self.stop.is_set()

    def _redacted(self, out: VideoWriter, frame: Frame, boxes: list[Box]) -> tuple[Any, list[Box]]:
        boxes = [*self._regions(frame.image), *boxes]
        redact_pixels(frame.image, boxes, self.settings.method, self.settings.cells)
        return out.convert(frame), boxes

    def _encode(
        self, out: VideoWriter, entry: FileReport, frame: Frame, redacted: Future[Any], video: Video | Camera
    ) -> None:
        picture, boxes = redacted.result()
        out.write(picture, frame.pts)
        seconds = float(frame.pts * video.time_base)
        self.table.add(entry.source, entry.frames, seconds, boxes)
        if self.sheet.wants(entry.frames):
            self.sheet.add(f"{entry.source} {seconds:.1f} s", frame.image, boxes)
        entry.count(boxes)

    def _take(self, batch: Sequence[_Shot], delay: FrameDelay) -> None:
        if not batch:
            return
        found = self._find([shot.prepared for shot in batch], [shot.frame.image for shot in batch])
        for shot, boxes in zip(batch, found, strict=True):
            delay.add(shot.frame, boxes)

    # both -------------------------------------------------------------------------------------------------------------

    def _find(self, prepared: Sequence[PreparedImage | None], images: Sequence[np.ndarray]) -> list[list[Box]]:
        if self.finder is None:
            return [[] for _ in images]
        shapes = [None if picture is None else picture.planes.shape for picture in prepared]
        if len(set(shapes)) != 1:
            raise DataError("the picture changes its size in the middle of the video; cut it there")
        found = self.finder.find([picture for picture in prepared if picture is not None])
        return [
            grown(rows, self.settings.margin, image.shape[0], image.shape[1], self.finder.names)
            for rows, image in zip(found, images, strict=True)
        ]

    def _regions(self, image: np.ndarray) -> list[Box]:
        return [region.box(image.shape[0], image.shape[1]) for region in self.settings.regions]


@dataclass
class _Picture:
    job: RedactionJob
    entry: FileReport
    image: np.ndarray
    prepared: PreparedImage | None
    labels: str | None = None


@dataclass
class _Shot:
    frame: Frame
    prepared: PreparedImage | None
