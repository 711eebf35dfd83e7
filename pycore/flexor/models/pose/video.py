# SPDX-License-Identifier: Apache-2.0
"""Frames of a video, a folder or images, read ahead of the model, with the cuts between its shots; and a video out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain
from pathlib import Path
from queue import Full, Queue
from typing import Any, Generic, TypeVar

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

Picture = NDArray[np.uint8]  # (H, W, 3), RGB
T = TypeVar("T")

AHEAD = 8  # frames that wait for the model, and for the overlay
PATIENCE = 0.1  # seconds after which a waiting thread looks whether it is still needed


class SourceError(ValueError):
    """A clip that cannot be read, or not to its end; the message is one line meant for the user."""


@dataclass(frozen=True)
class Frame:
    """One frame.

    Args:
        index: from 0, in the order of display.
        image: RGB, or None where it could not be decoded, for the reason in `error`.
        shot: number of the shot, one more after each cut.
        name: of the file that holds it.
    """

    index: int
    image: Picture | None
    shot: int
    name: str
    error: str = ""


@dataclass
class Clip:
    """An opened source: its frames can be taken once.

    Args:
        name: of the video or folder.
        frames: with `shot` still 0.
        video: whether it is one, not images.
        size: (width, height), for a video.
        fps, count: frames a second and in all, where they are known.
        files: that were opened.
    """

    name: str
    frames: Iterator[Frame]
    video: bool
    size: tuple[int, int] | None = None
    fps: Fraction | None = None
    count: int | None = None
    files: list[Path] = field(default_factory=list)


def open_clip(sources: Sequence[Path]) -> Clip:
    """A video, a folder of images (by name), or images in the order given.

    Raises:
        SourceError: nothing there, nothing in it, or a format that is not known.
    """
    for path in sources:
        if not path.exists():
            raise SourceError(f"{path}: no such file")
    if len(sources) == 1 and not sources[0].is_dir():
        path = sources[0]
        return _open_video(path) if _is_moving(path) else Clip(path.name, _images([path]), False, None, None, 1, [path])
    if len(sources) == 1:
        suffixes = Image.registered_extensions()
        files = sorted(file for file in sources[0].iterdir() if file.suffix.lower() in suffixes and file.is_file())
        if not files:
            raise SourceError(f"{sources[0]}: no images in this folder")
    else:
        files = list(sources)
        for path in files:
            if path.is_dir():
                raise SourceError(f"{path}: is a folder; give one folder, one video, or images")
            if path.suffix.lower() not in Image.registered_extensions():
                raise SourceError(f"{path}: not an image; videos are taken one at a time")
    return Clip(files[0].parent.name, _images(files), False, None, None, len(files), files)


def _is_moving(path: Path) -> bool:
    """Whether the name is not one of an image, or Pillow finds several frames in it."""
    suffix = path.suffix.lower()
    if suffix not in Image.registered_extensions() or suffix in (".mpg", ".mpeg"):
        return True
    try:
        with Image.open(path) as image:
            return bool(getattr(image, "n_frames", 1) > 1)
    except (OSError, SyntaxError, Image.DecompressionBombError):
        return False


def _images(files: Sequence[Path]) -> Iterator[Frame]:
    """Images one by one; one that cannot be read is a frame without an image, unless none can."""
    readable = False
    for index, path in enumerate(files):
        try:
            with Image.open(path) as image:
                if image.mode[0] in "IF":
                    raise OSError(f"{image.mode} images are not supported, convert it to 8 bits a channel")
                yield Frame(index, np.array(ImageOps.exif_transpose(image).convert("RGB")), 0, path.name)
                readable = True
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            message = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
            if not readable and index == len(files) - 1:
                raise SourceError(f"{path}: {message}") from None
            yield Frame(index, None, 0, path.name, message)


def _open_video(path: Path) -> Clip:
    try:
        clip = av.open(str(path))
        stream = clip.streams.video[0] if clip.streams.video else None
    except av.FFmpegError as error:
        raise SourceError(f"{path}: neither an image nor a video that can be read ({error.strerror})") from None
    if stream is None:
        clip.close()
        raise SourceError(f"{path}: holds no video")
    frames = _decoded(path, clip, stream)
    begun = []
    for frame in frames:  # up to one with an image: the stream does not know how it will be turned
        begun.append(frame)
        if frame.image is not None:
            break
    assert begun[-1].image is not None
    height, width = begun[-1].image.shape[:2]
    size, fps, count = (width, height), stream.average_rate, stream.frames or None
    return Clip(path.name, chain(begun, frames), True, size, fps, count, [path])


def _decoded(path: Path, clip: Any, stream: Any) -> Iterator[Frame]:
    """Frames of a video; what a packet should have held and did not is a frame without an image."""
    index, shape = 0, None
    with clip:
        try:
            for packet in clip.demux(stream):
                try:
                    pictures, error = packet.decode(), ""
                except av.FFmpegError as reason:
                    pictures, error = [None], str(reason.strerror)
                for picture in pictures:
                    image = None if picture is None else _upright(picture)
                    if image is not None:
                        shape = shape or image.shape
                        if image.shape != shape:
                            sizes = [f"{width}x{height}" for height, width, _ in (image.shape, shape)]
                            raise SourceError(
                                f"{path}: frame {index} is {sizes[0]}, but those before are {sizes[1]}: cut it there"
                            )
                    yield Frame(index, image, 0, path.name, error)
                    index += 1
        except av.FFmpegError as error:
            raise SourceError(f"{path}: cannot be read beyond frame {index} ({error.strerror})") from None
    if shape is None:
        raise SourceError(f"{path}: holds no frame that can be decoded")


def _upright(picture: Any) -> Picture:
    """RGB, turned as the camera says it was held."""
    image = picture.to_ndarray(format="rgb24")
    turns = round(picture.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


class Cuts:
    """Finds the first frame of each shot.

    Frames are compared as grey pictures of about 18 rows, each of mean 0: d = 1 - <p, q> / (|p| |q|), from 0 to 2. A
    cut is where d > 0.6 and the mean difference of grey is over 3 % of white, and where the size changes. In films
    that were looked at, cuts have d > 0.75, what passes close to the camera d < 0.5. Fades are not found.
    """

    ROWS, LEAST_TURN, LEAST_CHANGE = 18, 0.6, 0.03

    def __init__(self) -> None:
        self._before: NDArray[np.float64] | None = None
        self._shape: tuple[int, ...] = ()

    def __call__(self, image: Picture) -> bool:
        """Whether this frame starts a new shot; the first frame does not."""
        step = max(1, min(image.shape[:2]) // (8 * self.ROWS))  # every pixel of a large frame would take too long
        sparse = Image.fromarray(np.ascontiguousarray(image[::step, ::step]))
        small = sparse.reduce(max(1, min(sparse.size) // self.ROWS)).convert("L")
        grey = np.asarray(small).ravel() / 255
        before, shape = self._before, self._shape
        self._before, self._shape = grey, image.shape
        if before is None:
            return False
        if image.shape != shape:
            return True
        p, q = grey - grey.mean(), before - before.mean()
        lengths = float(np.sqrt((p @ p) * (q @ q)))
        turn = 1 - float(p @ q) / lengths if lengths > 0 else 1.0
        return turn > self.LEAST_TURN and float(np.abs(grey - before).mean()) > self.LEAST_CHANGE


def shots(frames: Iterable[Frame]) -> Iterator[Frame]:
    """The frames with the numbers of their shots; unreadable ones belong to the shot before."""
    cuts, shot = Cuts(), 0
    for frame in frames:
        if frame.image is not None:
            shot += cuts(frame.image)
        yield Frame(frame.index, frame.image, shot, frame.name, frame.error)


def windows(frames: Iterable[Frame], offsets: Sequence[int]) -> Iterator[tuple[Frame, ...]]:
    """For each frame, the frames at these offsets from it, the frame itself standing in where there is none.

    There is none before the first, after the last, beyond a cut, and where one could not be decoded. Where the frames
    end in a SourceError, it is raised after the windows of those before it.
    """
    back, onward = -min(offsets), max(offsets)
    held: list[Frame] = []
    place = 0  # in `held`, of the next frame to be answered

    def window() -> tuple[Frame, ...]:
        centre = held[place]
        found = []
        for offset in offsets:
            other = held[place + offset] if 0 <= place + offset < len(held) else centre
            found.append(other if other.image is not None and other.shot == centre.shot else centre)
        return tuple(found)

    broken: SourceError | None = None
    try:
        for frame in frames:
            held.append(frame)
            if len(held) > place + onward:
                yield window()
                place += 1
            if place > back:
                held.pop(0)
                place -= 1
    except SourceError as error:
        broken = error
    while place < len(held):
        yield window()
        place += 1
    if broken is not None:
        raise broken


def ahead(items: Iterable[T], depth: int = AHEAD) -> Iterator[T]:
    """The same items, taken on a thread of its own, at most `depth` before they are asked for."""
    ready: Queue[tuple[T | None, BaseException | None]] = Queue(depth)
    stop = threading.Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not stop.is_set():
            try:
                return ready.put((item, error), timeout=PATIENCE)
            except Full:
                continue

    def fill() -> None:
        try:
            for item in items:
                put(item, None)
                if stop.is_set():
                    return
            put(None, StopIteration())
        except BaseException as error:  # whatever it is, it belongs to the one who takes the items
            put(None, error)

    thread = threading.Thread(target=fill, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()


class Behind(Generic[T]):
    """Calls `work(item)` on a thread of its own for each item put, in order; `put` and `close` raise what it raised."""

    def __init__(self, work: Callable[[T], None], depth: int = AHEAD) -> None:
        self._work, self._items = work, Queue[T | None](depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="behind", daemon=True)
        self._thread.start()

    def put(self, item: T) -> None:
        self._items.put(item)
        self._raise()

    def close(self) -> None:
        """Waits for the items that were put."""
        self._end()
        self._raise()

    def stop(self) -> None:
        """Waits for the item in work, and leaves the others."""
        self._error = self._error or InterruptedError()
        self._end()

    def _end(self) -> None:
        self._items.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._items.get()) is not None:
            if self._error is None:
                try:
                    self._work(item)
                except BaseException as error:
                    self._error = error

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


class Movie:
    """A video file: H.264 where PyAV's FFmpeg has libx264, else MPEG-4; the same frames give the same bytes.

    Args:
        path: written under a hidden name beside it, which `close` turns into this.
        fps: frames a second.
    """

    def __init__(self, path: Path, fps: Fraction) -> None:
        self.path, self.fps = path, fps
        self._part = path.with_name(f".{path.name}")
        self._container: Any = av.open(str(self._part), "w", format="mp4")
        self._stream: Any = None

    def write(self, image: Picture) -> None:
        if self._stream is None:
            self._stream = self._new_stream(image.shape[1], image.shape[0])
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        self._container.mux(self._stream.encode(frame))

    def close(self, keep: bool = True) -> None:
        """Finish the file, or remove what there is of it."""
        try:
            if keep and self._stream is not None:
                self._container.mux(self._stream.encode(None))
                self._container.close()
                self._part.replace(self.path)
            else:
                with suppress(av.FFmpegError):  # on a full disk
                    self._container.close()
        finally:
            self._part.unlink(missing_ok=True)

    def _new_stream(self, width: int, height: int) -> Any:
        name = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream: Any = self._container.add_stream(name, rate=self.fps)
        stream.width, stream.height = width, height
        odd = width % 2 or height % 2
        stream.pix_fmt = "yuv444p" if odd and name == "libx264" else "yuv420p"
        stream.codec_context.thread_count = 1  # the model needs the others, and bytes do not depend on their number
        # x264's macroblock tree reads memory that nobody wrote: with it, bytes differ from run to run.
        h264 = {"preset": "veryfast", "crf": "20", "x264-params": "mbtree=0"}
        stream.options = h264 if name == "libx264" else {"qscale": "3"}
        return stream
