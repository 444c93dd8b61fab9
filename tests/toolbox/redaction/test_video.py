"""Videos and streams: every frame, its time, its sound, and what a file holds beside them."""

from __future__ import annotations

import http.server
import json
import math
import threading
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from dptrain.commands.main import main
from dptrain.detection.finding import Finder
from dptrain.errors import DataError, ModelError
from dptrain.toolbox.redaction import redact
from dptrain.toolbox.redaction.video import Video, shown

from .scenes import GREY, WEIGHTS, greyness, moving_digit, read_video, textured, write_video

SECRET = "48.8584+2.2945/"


def video_with_sound(file: Path, frames: int = 20, suffix_format: str = "mp4") -> list[bytes]:
    """A video of uneven times with a tone, a title and a place; return the packets of its sound."""
    options = {"movflags": "faststart"} if suffix_format == "mp4" else {}
    with av.open(str(file), "w", format=suffix_format, options=options) as out:
        out.metadata.update({"title": SECRET, "location": SECRET, "creation_time": "2020-01-01T00:00:00Z"})
        track = out.add_stream("libx264", rate=25)
        track.width, track.height, track.pix_fmt = 160, 96, "yuv420p"
        track.codec_context.time_base = Fraction(1, 1000)
        sound = out.add_stream("aac", rate=16000)
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(textured(96, 160, number), "bgr24")
            frame.pts, frame.time_base = 40 * number + (15 if number % 2 else 0), Fraction(1, 1000)
            out.mux(track.encode(frame))
        out.mux(track.encode(None))
        tone = (np.sin(np.arange(16000 * frames // 25) * 0.17) * 9000).astype(np.int16)[None]
        wave = av.AudioFrame.from_ndarray(tone, "s16", "mono")
        wave.sample_rate = 16000
        out.mux(sound.encode(wave))
        out.mux(sound.encode(None))
    return sound_of(file)


def sound_of(file: Path) -> list[bytes]:
    with av.open(str(file)) as source:
        return [bytes(p) for p in source.demux(*source.streams.audio) if p.size] if source.streams.audio else []


def times_of(file: Path) -> list[float]:
    with av.open(str(file)) as source:
        return [float(frame.time) for frame in source.decode(video=0)]


def test_a_region_is_covered_in_every_frame_and_the_rest_is_the_same(tmp_path: Path) -> None:
    frames = [textured(96, 161, number) for number in range(30)]  # an odd width
    source = write_video(tmp_path / "in.mp4", frames)
    report = redact(source, tmp_path / "out.mp4", regions=["20,10,80,60"])
    before, after = read_video(source), read_video(tmp_path / "out.mp4")
    assert len(after) == len(before) == 30 == report.files[0].frames
    assert after[0].shape == (96, 160, 3)
    for a, b in zip(before, after, strict=True):
        assert greyness(b, np.array([22, 12, 78, 58])) > 0.9
        assert np.abs(a[66:, :160].astype(int) - b[66:]).mean() < 12
    assert np.abs(np.mean([a[66:, :160].mean((0, 1)) for a in before], 0)
                  - np.mean([b[66:].mean((0, 1)) for b in after], 0)).max() < 2  # no shift of colour  # fmt: skip


def test_sound_is_dropped_or_kept_as_it_is_and_times_stay_and_names_and_places_go(tmp_path: Path) -> None:
    source = tmp_path / "in.mp4"
    packets = video_with_sound(source)
    assert packets and SECRET.encode() in source.read_bytes()
    for suffix in ("mp4", "mkv", "mov"):
        for audio in ("keep", "drop"):
            target = tmp_path / f"{audio}.{suffix}"
            redact(source, target, regions=["0,0,40,40"], audio=audio)
            assert sound_of(target) == (packets if audio == "keep" else [])
            assert np.allclose(times_of(target), times_of(source), atol=0.0011)
            assert SECRET.encode() not in target.read_bytes()
            with av.open(str(target)) as opened:
                tags = {key.lower() for key in (*opened.metadata, *opened.streams.video[0].metadata)}
                assert not tags & {"title", "location", "creation_time", "date"}
    for suffix in ("webm", "avi"):
        redact(source, tmp_path / f"out.{suffix}", regions=["0,0,40,40"])
        assert len(times_of(tmp_path / f"out.{suffix}")) == 20
    with pytest.raises(DataError, match=r"sound \(aac\) cannot be kept"):
        redact(source, tmp_path / "no.webm", regions=["0,0,40,40"], audio="keep")
    assert not [file for file in tmp_path.iterdir() if "no.webm" in file.name]


class Missing(Finder):
    """The real detector, which finds nothing in some frames."""

    missed: range = range(0)
    asked = 0

    def find(self, pictures: Any) -> list[np.ndarray]:
        found = super().find(pictures)
        for number in range(len(found)):
            if self.asked + number in self.missed:
                found[number] = found[number][:0]
        self.asked += len(found)
        return found


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Missing, "missed", range(10, 15))
    monkeypatch.setattr("dptrain.detection.finding.Finder", Missing)


@pytest.mark.usefixtures("missing")
@pytest.mark.parametrize(("on_miss", "hold"), [("previous", 6), ("blur-all", 6), ("previous", 0)])
def test_frames_in_which_the_detector_misses_stay_redacted(on_miss: str, hold: int, tmp_path: Path) -> None:
    frames, truth = moving_digit(26)
    source = write_video(tmp_path / "in.mp4", frames)
    target = tmp_path / "out.mp4"
    report = redact(source, target, weights=WEIGHTS, imgsz=256, conf=0.1, on_miss=on_miss, hold=hold, batch_size=4)
    after = read_video(target)
    covered = [greyness(frame, box) > 0.9 for frame, box in zip(after, truth, strict=True)]
    entry = report.files[0]
    if hold == 0:
        assert not any(covered[10:15])  # the misses are real
        return
    assert all(covered)
    whole = [greyness(frame, np.array([0, 0, 256, 128])) > 0.97 for frame in after]
    assert [number for number, is_whole in enumerate(whole) if is_whole] == (
        [*range(10, 15)] if on_miss == "blur-all" else []
    )
    assert entry.whole_frames == (5 if on_miss == "blur-all" else 0)
    rows = (tmp_path / "out.mp4.redaction/boxes.csv").read_text().splitlines()
    held = {int(row.split(",")[1]) for row in rows if row.endswith("held")}
    assert held >= set(range(10, 15)) and entry.boxes["held"] >= 5


def test_a_model_that_answers_no_numbers_stops_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half precision can overflow: no box would pass the threshold, and the frames would be written as they are."""
    import torch

    source = write_video(tmp_path / "in.mp4", moving_digit(4)[0])
    original = Finder.batch
    monkeypatch.setattr(Finder, "batch", lambda self, pictures: original(self, pictures) * torch.nan)
    with pytest.raises(ModelError, match="not numbers"):
        redact(source, tmp_path / "out.mp4", weights=WEIGHTS, imgsz=128)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.mp4"]


def test_a_turned_video_is_redacted_as_it_is_shown(tmp_path: Path) -> None:
    """Phones store a turn in the header: patch it in, and hold ours against OpenCV's own turning."""
    source = write_video(tmp_path / "in.mp4", [textured(96, 160, number) for number in range(6)])
    data = bytearray(source.read_bytes())
    place = data.index(b"tkhd") + 4 + 40  # version 0
    one, minus = b"\0\1\0\0", b"\xff\xff\0\0"
    zero = bytes(4)
    assert data[place : place + 4] == one
    for turn in (zero + one + zero + minus + zero, zero + minus + zero + one + zero):
        data[place : place + 20] = turn
        source.write_bytes(data)
        redact(source, tmp_path / "out.mp4", regions=["0%,0%,100%,30%"], overwrite=True)
        before, after = read_video(source), read_video(tmp_path / "out.mp4")
        assert before[0].shape == after[0].shape == (160, 96, 3)
        assert greyness(after[0], np.array([0, 0, 96, 46])) > 0.9
        assert np.abs(before[0][54:].astype(int) - after[0][54:]).mean() < 8


def test_a_broken_video_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4", [textured(96, 160, number) for number in range(20)])
    whole = source.read_bytes()
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "good.mp4").write_bytes(whole)
    (folder / "words.mkv").write_text("no video")
    report = redact(folder, tmp_path / "safe", regions=["0,0,10,10"])
    assert {item.source: item.status for item in report.files} == {
        "cut.mp4": "failed", "empty.mp4": "failed", "good.mp4": "redacted", "words.mkv": "failed"
    }  # fmt: skip
    assert [file.name for file in (tmp_path / "safe").iterdir()] == ["good.mp4"]
    with pytest.raises(DataError, match="cannot be opened as a video"):
        redact(folder / "cut.mp4", tmp_path / "one.mp4", regions=["0,0,10,10"])


@pytest.mark.parametrize("suffix_format", ["mp4", "matroska"])
def test_a_video_that_was_cut_off_is_not_taken_for_a_whole_one(
    suffix_format: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their headers stand first, so a cut copy opens and plays up to the cut."""
    source = tmp_path / f"in.{'mkv' if suffix_format == 'matroska' else suffix_format}"
    video_with_sound(source, 40, suffix_format)
    redact(source, tmp_path / "whole.mp4", regions=["0,0,40,40"])
    assert len(times_of(tmp_path / "whole.mp4")) == 40
    data = source.read_bytes()
    source.write_bytes(data[: len(data) // 2])
    before = sorted(tmp_path.iterdir())
    assert main(["redact", str(source), "-o", str(tmp_path / "out.mp4"), "--region", "0,0,40,40"]) == 2
    assert "is cut off, " in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_a_failure_in_the_last_frame_leaves_no_file(tmp_path: Path) -> None:
    """A region that no frame has room for is only met when frames are written."""
    source = write_video(tmp_path / "in.mp4", [textured(96, 160, number) for number in range(5)])
    with pytest.raises(DataError, match="outside a picture of 160 x 96"):
        redact(source, tmp_path / "out.mp4", regions=["500,500,600,600"])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.mp4"]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of an endless stream of JPEGs, as cameras on a network give them."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
            self.end_headers()
            try:
                for number in range(15 if "broken" in self.path else 2000):
                    data = cv2.imencode(".jpg", textured(96, 160, number % 7))[1].tobytes()
                    self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n")
                    self.wfile.write(f"Content-Length: {len(data)}\r\n\r\n".encode() + data + b"\r\n")
                self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: 5000\r\n\r\n\xff\xd8")
            except OSError:
                return

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://camera:hunter2@127.0.0.1:{server.server_port}/stream.mjpg?key=hunter3"
    server.shutdown()
    server.server_close()


def test_a_stream_ends_after_its_frames_and_its_password_is_nowhere(
    served: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.mp4"
    assert main(["redact", served, "-o", str(target), "--region", "0,0,50,50", "--frames", "12"]) == 0
    after = read_video(target)
    assert len(after) == 12 and all(greyness(frame, np.array([2, 2, 48, 48])) > 0.9 for frame in after)
    said = capsys.readouterr()
    texts = [said.out, said.err, *(f.read_text() for f in (tmp_path / "out.mp4.redaction").glob("*.[jc]s*"))]
    assert not any("hunter" in text for text in texts)
    assert "127.0.0.1" in json.loads((tmp_path / "out.mp4.redaction/report.json").read_text())["files"][0]["source"]


def test_of_a_stream_that_breaks_off_what_came_is_kept_and_the_break_is_told(
    served: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "out.mp4"
    assert main(["redact", served.replace("stream", "broken"), "-o", str(target), "--region", "0,0,50,50"]) == 2
    assert len(read_video(target)) == 15
    error = capsys.readouterr().err
    assert "cannot be read further" in error and f"the 15 frames before it are in {target}" in error
    assert (
        "cannot be read further"
        in json.loads((tmp_path / "out.mp4.redaction/report.json").read_text())["files"][0]["reason"]
    )


def test_a_stream_that_is_not_there_is_one_line_without_its_password(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for source in ("http://camera:hunter2@127.0.0.1:9/x", "17"):
        assert main(["redact", source, "-o", str(tmp_path / "out.mp4"), "--region", "0,0,9,9"]) == 2
        error = capfd.readouterr().err.splitlines()  # OpenCV writes past Python
        assert len(error) == 1 and "hunter" not in error[0]
    assert not list(tmp_path.iterdir())
    assert shown("rtsp://u:p@[::1]:554/live?token=1") == "rtsp://::1:554/live"


def test_a_camera_is_read_until_its_seconds_are_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_video(tmp_path / "in.mp4", [textured(96, 160, number) for number in range(5)] * 24)
    real = cv2.VideoCapture
    monkeypatch.setattr(cv2, "VideoCapture", lambda number: real(str(source)) if number == 0 else real(number))
    clock = iter(np.arange(0, 1000, 0.04))
    monkeypatch.setattr("dptrain.toolbox.redaction.video.time.monotonic", lambda: float(next(clock)))
    report = redact("0", tmp_path / "out.mkv", regions=["0,0,50,50"], seconds=2)
    after = read_video(tmp_path / "out.mkv")
    assert report.files[0].source == "camera 0"
    assert 0 < len(after) <= 51 and len(after) == report.files[0].frames
    assert all(greyness(frame, np.array([2, 2, 48, 48])) > 0.9 for frame in after)


def test_without_pyav_a_video_is_refused_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    source = write_video(tmp_path / "in.mp4", [textured(96, 160)] * 3)
    monkeypatch.setitem(sys.modules, "av", None)
    assert main(["redact", str(source), "-o", str(tmp_path / "out.mp4"), "--region", "0,0,9,9"]) == 2
    assert "pip install 'dptrain[video]'" in capsys.readouterr().err
    cv2.imwrite(str(tmp_path / "a.png"), textured(40, 40))
    assert main(["redact", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.png"), "--region", "0,0,9,9"]) == 0


def test_frames_of_a_video_come_with_growing_times(tmp_path: Path) -> None:
    video_with_sound(tmp_path / "in.mp4")
    video = Video(tmp_path / "in.mp4")
    times = [item.pts for item in video]
    video.close()
    assert times == sorted(set(times)) and len(times) == 20 and not math.isnan(float(video.rate)) and GREY == 114
