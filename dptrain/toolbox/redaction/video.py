"""Video files, network streams and cameras: frames in, a video file of redacted frames out, through PyAV and FFmpeg.

Of the source only the pictures, their times and, where asked, the sound are carried over: no title, no place, no date,
no subtitles, no data tracks such as a camera's GPS, no cover picture.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np

from ...errors import ConfigError, DataError
from .length import Length

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet

#: Suffixes of videos that are written: FFmpeg's name of the container, the encoder and its options.
_H264 = ("libx264", {"preset": "veryfast", "crf": "20"})
WRITTEN = {
    ".mp4": ("mp4", *_H264),
    ".m4v": ("mp4", *_H264),
    ".mov": ("mov", *_H264),
    ".mkv": ("matroska", *_H264),
    ".avi": ("avi", "libx264", {**_H264[1], "bf": "0"}),
    ".webm": ("webm", "libvpx-vp9", {"deadline": "realtime", "cpu-used": "8", "crf": "24", "b": "0"}),
}
#: Suffixes that are known as videos inside a folder.
VIDEO_SUFFIXES = frozenset(WRITTEN) | {
    ".3gp", ".asf", ".flv", ".gif", ".m2ts", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".wmv",
}  # fmt: skip
_LIVE = ("rtsp", "rtsps", "rtmp", "rtmps", "udp", "rtp", "srt")  # they do not wait for a slow reader
_SCHEMES = (*_LIVE, "http", "https", "tcp")
_DEFAULT_RATE = Fraction(25)
_EXACT = 4 | 0x40000  # swscale's SWS_BICUBIC and SWS_ACCURATE_RND: without the latter, grey 114 comes back as 110


@dataclass
class Decoded:
    """One picture of a video as its decoder gives it.

    Attributes:
        data: What ``picture`` of its video makes pixels of.
        pts: Its time, in units of the video's ``time_base``.
    """

    data: Any
    pts: int


@dataclass
class Frame:
    """One picture of a video.

    Attributes:
        image: uint8 BGR pixels (height, width, 3), upright.
        pts: Its time, in units of the video's ``time_base``.
    """

    image: np.ndarray
    pts: int


def need_av() -> Any:
    """Return PyAV, or say how to get it.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise ConfigError(f"videos need PyAV ({error}): pip install 'dptrain[video]'") from None
    return av


def is_stream(source: str) -> bool:
    """Whether a source is a camera's number or the address of a stream."""
    return source.isdecimal() or (source.partition("://")[0].lower() in _SCHEMES and "://" in source)


def shown(source: str | Path) -> str:
    """A source for reports and messages: an address without user, password and query, which may hold keys."""
    if not is_stream(str(source)):
        return str(source)
    if str(source).isdecimal():
        return f"camera {source}"
    parts = urlsplit(str(source))
    port = re.search(r":\d+$", parts.netloc)
    return f"{parts.scheme}://{parts.hostname or ''}{port.group() if port else ''}{parts.path}"


class Video:
    """An opened video; iterate over it once, then close it.

    Args:
        source: A file, or the address of a stream.
        audio: Also yield the packets of its first sound track.

    Attributes:
        time_base: Seconds that a unit of time lasts.
        rate: Frames a second, as far as it is known.
        live: Whether it goes on whether or not it is read.
        unreadable: Packets that could not be decoded, so far; their pictures are left out.
        broken: Why it ended before its time, once it did; a file raises that instead.

    Raises:
        ConfigError: PyAV is not installed.
        DataError: It cannot be opened or holds no video; or, while it is iterated, a file is shorter than it says.
    """

    broken = ""

    def __init__(self, source: str | Path, audio: bool = False) -> None:
        self._av = need_av()
        self.name = shown(source)
        self._is_stream = is_stream(str(source))
        self.live = self._is_stream and str(source).partition("://")[0].lower() in _LIVE
        options = {"rtsp_transport": "tcp"} if str(source).startswith("rtsp") else {}
        # A relative name with a colon in it would be taken for an address.
        place = str(source) if self._is_stream else str(Path(source).absolute())
        try:
            self._container: InputContainer = self._av.open(place, options=options, timeout=(20, 20))
        except (self._av.error.FFmpegError, OSError) as error:
            raise DataError(f"{self.name}: cannot be opened as a video ({error.strerror})") from None
        if not self._container.streams.video:
            self._container.close()
            raise DataError(f"{self.name}: holds no video")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.audio = self._container.streams.audio[0] if audio and self._container.streams.audio else None
        self.time_base: Fraction = self._stream.time_base or Fraction(1, 1000)
        self.rate: Fraction = self._stream.average_rate or self._stream.guessed_rate or _DEFAULT_RATE
        context = self._stream.codec_context
        self.colours = {
            name: int(getattr(context, name)) for name in ("colorspace", "color_range", "color_primaries", "color_trc")
        }
        self.unreadable = 0
        self._length = Length(self._container, self._stream)

    def __iter__(self) -> Iterator[Decoded | Packet]:
        last, broken = -1, ""
        tracks = self._length.tracks if self.audio is None else {*self._length.tracks, self.audio}
        try:
            for packet in self._container.demux(*tracks):
                self._length.take(packet)
                if packet.stream is not self._stream:
                    if packet.stream is self.audio and packet.dts is not None:
                        yield packet
                    continue
                try:
                    decoded = packet.decode()
                except self._av.error.FFmpegError:
                    self.unreadable += 1
                    continue
                for frame in decoded:
                    last = frame.pts if frame.pts is not None and frame.pts > last else last + self._step()
                    yield Decoded(frame, last)
        except (self._av.error.FFmpegError, OSError) as error:
            broken = f"{self.name}: cannot be read further ({error.strerror})"
        if not broken and (missing := self._length.missing()):
            broken = (
                f"{self.name}: is cut off, {missing:.1f} of its {self._length.declared:.1f} s are not there; get a "
                "whole copy, or let ffmpeg -i IN -c copy OUT make a video of what is left"
            )
        if broken and not (self._is_stream and last >= 0):  # what a stream has shown cannot be got again, and is kept
            raise DataError(broken)
        self.broken = broken

    def _step(self) -> int:
        return max(int(1 / (self.rate * self.time_base)), 1)

    def picture(self, decoded: Decoded) -> Frame:
        """Make pixels of a decoded picture, as a player shows it: phones store a turn beside it. In any thread."""
        image: np.ndarray = decoded.data.to_ndarray(format="bgr24", interpolation=_EXACT)
        turns = round((decoded.data.rotation or 0) / 90) % 4
        return Frame(np.ascontiguousarray(np.rot90(image, turns)) if turns else image, decoded.pts)

    def close(self) -> None:
        """Close the file or the connection."""
        self._container.close()


class Camera:
    """A camera of this machine, by its number, through OpenCV; as :class:`Video`, without sound."""

    audio = None
    live = True
    unreadable = 0
    broken = ""
    time_base = Fraction(1, 1000)

    def __init__(self, number: int) -> None:
        import cv2

        self.name = f"camera {number}"
        logs = cv2.utils.logging
        level = logs.setLogLevel(logs.LOG_LEVEL_SILENT)  # a dozen lines about a camera that is not there
        try:
            self._capture = cv2.VideoCapture(number)
        finally:
            logs.setLogLevel(level)
        if not self._capture.isOpened():
            raise DataError(f"{self.name}: no such camera, or another program uses it")
        self.rate = Fraction(self._capture.get(cv2.CAP_PROP_FPS) or 25).limit_denominator(1000)
        self.colours: dict[str, int] = {}

    def __iter__(self) -> Iterator[Decoded]:
        begin, last = time.monotonic(), -1
        while True:
            there, image = self._capture.read()
            if not there:
                return
            last = max(int((time.monotonic() - begin) * 1000), last + 1)
            yield Decoded(image, last)

    def picture(self, decoded: Decoded) -> Frame:
        """Return the pixels of a picture."""
        return Frame(decoded.data, decoded.pts)

    def close(self) -> None:
        """Let the camera go."""
        self._capture.release()


def open_stream(source: str, audio: bool) -> Video | Camera:
    """Open a camera by its number, or a stream by its address."""
    return Camera(int(source)) if source.isdecimal() else Video(source, audio)


def refuse_suffix(file: Path) -> None:
    """Refuse a video name that nothing can be written under.

    Raises:
        DataError: It names the ones that can.
    """
    if file.suffix.lower() not in WRITTEN:
        kind = file.suffix or "a name without suffix"
        raise DataError(f"{file}: videos cannot be written as {kind}; use one of {' '.join(WRITTEN)}")


class VideoWriter:
    """Encodes frames, and copies sound, into a stream that can be sought in; use it as a context manager.

    Args:
        stream: Where the file goes.
        suffix: Of the file: decides on container and encoder.
        video: What the frames come from.
    """

    def __init__(self, stream: IO[bytes], suffix: str, video: Video | Camera) -> None:
        self._av = need_av()
        self._format, self._codec, self._options = WRITTEN[suffix.lower()]
        self._video = video
        self._container = self._av.open(stream, "w", format=self._format)
        self._track: Any = None
        self._sound: Any = None
        self._waiting: list[Any] = []  # sound from before the first frame
        self._size, self._last = (0, 0), -1
        # AVI has no times, only a rate.
        self._base = 1 / video.rate if suffix.lower() == ".avi" else video.time_base

    def convert(self, frame: Frame) -> Any:
        """Make what the encoder takes of a frame, in any thread.

        An odd last row or column is left out, which the usual colour format cannot hold.
        """
        height, width = (side // 2 * 2 for side in frame.image.shape[:2])
        if not height or not width:
            raise DataError(f"{self._video.name}: a picture of less than 2 x 2 pixels cannot be written as a video")
        picture = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.image[:height, :width]), "bgr24")
        wanted = {"dst_colorspace": self._colour("colorspace"), "dst_color_range": self._colour("color_range")}
        known = {name: value for name, value in wanted.items() if value}
        return picture.reformat(format="yuv420p", interpolation=_EXACT, **known)

    def write(self, picture: Any, pts: int) -> None:
        """Encode a converted frame; frames come in order."""
        if self._track is None:
            self._start(picture.height, picture.width)
        if (picture.height, picture.width) != self._size:
            raise DataError(f"{self._video.name}: the picture changes its size in the middle; cut the video there")
        self._last = max(round(pts * self._video.time_base / self._base), self._last + 1)
        picture.pts, picture.time_base = self._last, self._base
        self._container.mux(self._track.encode(picture))

    def _colour(self, name: str) -> int:
        """FFmpeg's number, 0 for what the source leaves open."""
        value = self._video.colours.get(name, 2)
        return 0 if value == 2 and name != "color_range" else value

    def _start(self, height: int, width: int) -> None:
        track = self._container.add_stream(self._codec, rate=self._video.rate, options=dict(self._options))
        track.width, track.height, track.pix_fmt = width, height, "yuv420p"
        track.codec_context.time_base = self._base
        for name in self._video.colours:
            if self._colour(name):
                setattr(track.codec_context, name, self._colour(name))
        if self._video.audio is not None:
            try:
                self._sound = self._container.add_stream_from_template(self._video.audio)
            except (self._av.error.FFmpegError, ValueError) as error:
                raise DataError(
                    f"{self._video.name}: its sound ({self._video.audio.codec_context.name}) cannot be kept in this "
                    f"kind of file ({error}): use another suffix, or --audio drop"
                ) from None
        self._track, self._size = track, (height, width)
        for packet in self._waiting:
            self.sound(packet)
        self._waiting.clear()

    def sound(self, packet: Packet) -> None:
        """Copy a packet of sound as it is."""
        if self._track is None:
            self._waiting.append(packet)
            return
        packet.stream = self._sound
        try:
            self._container.mux(packet)
        except self._av.error.FFmpegError as error:
            raise DataError(
                f"{self._video.name}: its sound cannot be kept in this kind of file ({error.strerror}): use another "
                "suffix, or --audio drop"
            ) from None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            if self._track is None:
                raise DataError(f"{self._video.name}: not one frame could be decoded")
            self._container.mux(self._track.encode(None))
        try:
            self._container.close()
        except Exception:  # of a file that was begun and is thrown away: of FFmpeg, of a disk that is full
            if kind is None:
                raise
