"""How long a video says that it is, and how much of it was there: a file that was cut off still plays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet

#: FFmpeg's names of containers whose header says how long each track is, and of those that say it of the longest track.
#: Of others, and of an AVI without its index, FFmpeg tells what it finds.
_OF_TRACK = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "asf"})
_OF_LONGEST = frozenset({"matroska,webm", "flv"})
_TOLERANCE = 0.5  # seconds: writers round, and count the last frame or do not


class Length:
    """Measures the packets of a video against its header.

    Args:
        container: The opened video.
        stream: Its pictures.

    Attributes:
        tracks: Those whose packets are to be shown to :meth:`take`.
        declared: Seconds, of the header; 0 where it says nothing.
    """

    def __init__(self, container: InputContainer, stream: Any) -> None:
        name = container.format.name
        self.tracks: list[Any] = [stream]
        self.declared = 0.0
        if name in _OF_TRACK:
            self.declared = float((stream.duration or 0) * (stream.time_base or 0))
        elif name in _OF_LONGEST:
            self.tracks += container.streams.audio
            self.declared = (container.duration or 0) / 1e6
        self._begin = self._end = 0.0

    def take(self, packet: Packet) -> None:
        """Count a packet, if it is of one of the tracks."""
        if packet.stream in self.tracks and packet.pts is not None and packet.time_base is not None:
            self._begin = min(self._begin, float(packet.pts * packet.time_base))
            self._end = max(self._end, float((packet.pts + (packet.duration or 0)) * packet.time_base))

    def missing(self) -> float:
        """Seconds that were declared and have not come; 0 for what rounding explains."""
        missing = self.declared - (self._end - self._begin)
        return missing if missing > _TOLERANCE else 0.0
