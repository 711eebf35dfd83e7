# SPDX-License-Identifier: Apache-2.0
"""HEVC in MP4, MOV, MKV, HEIF, MPEG-TS and what else FFmpeg's demuxers read, through PyAV."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ... import _C
from .errors import HevcError

if TYPE_CHECKING:
    from .source import Source


def container_feeds(source: Source, core: Callable[[int], _C.HevcDecoder]) -> Iterator[tuple[_C.HevcDecoder, int]]:
    """Feed the packets of a container's HEVC stream to a decoder, which is yielded after each, and the bytes read."""
    av = _import_av(source.name)
    try:
        with av.open(source.file, mode="r", metadata_errors="replace") as container:
            stream = _choose_stream(source.name, container)
            decoder = _configured(stream.codec_context.extradata, core)
            for packet in container.demux(stream):
                if packet.size:
                    decoder.feed(packet, False)
                    yield decoder, min(source.size, (packet.pos or 0) + packet.size)
            decoder.finish()
            yield decoder, source.size
    except av.FFmpegError as error:
        raise HevcError(f"{source.name}: the container cannot be read: {error.strerror}") from None


def _import_av(name: str) -> Any:
    try:
        import av
    except ImportError:
        raise ImportError(
            f"{name} is a container, and reading it needs PyAV: pip install flexor[codec], or extract the HEVC stream "
            "first (ffmpeg -i IN -c copy OUT.hevc)"
        ) from None
    return av


def _choose_stream(name: str, container: Any) -> Any:
    """The default one (a still's primary item) of the HEVC streams."""
    streams = list(container.streams.video)
    names = [stream.codec_context.name if stream.codec_context else "an unknown codec" for stream in streams]
    hevc = [stream for stream, codec in zip(streams, names, strict=True) if codec == "hevc"]
    if not hevc:
        others = ", ".join(names) or "no video"
        raise HevcError(f"{name} holds {others}, not HEVC")
    return next((stream for stream in hevc if int(stream.disposition) & 1), hevc[0])


def _configured(extradata: bytes | None, core: Callable[[int], _C.HevcDecoder]) -> _C.HevcDecoder:
    """A decoder that knows the stream's parameter sets, from an hvcC record or in a byte stream."""
    if extradata and extradata[0] == 1:
        try:
            decoder = core(_C.hevc_length_size(extradata))
            decoder.add_parameter_sets(extradata)
        except ValueError as error:
            raise HevcError(str(error)) from None
        return decoder
    decoder = core(0)
    if extradata:
        decoder.feed(extradata, False)
    return decoder
