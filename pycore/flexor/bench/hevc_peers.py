# SPDX-License-Identifier: Apache-2.0
"""Other HEVC decoders in this process: ffmpeg's through PyAV, and libde265 through ctypes."""

from __future__ import annotations

import ctypes
import ctypes.util
import functools

import numpy as np
import torch
from torch import Tensor

from .contest import Unavailable

WAITING_FOR_DATA = 13  # DE265_ERROR_WAITING_FOR_INPUT_DATA


def ffmpeg(stream: bytes, threads: int) -> tuple[Tensor, ...]:
    """Every plane of every picture, in ffmpeg's own buffers. One thread, or what ffmpeg makes of several."""
    import av

    decoder = av.CodecContext.create("hevc", "r")
    decoder.thread_count = threads
    decoder.thread_type = "AUTO"  # whole pictures and rows
    frames = [frame for packet in [*decoder.parse(stream), *decoder.parse(), None] for frame in decoder.decode(packet)]
    wide = str(decoder.pix_fmt).endswith("le")
    planes = []
    for frame in frames:
        for plane in frame.planes:
            samples = np.frombuffer(memoryview(plane), np.int16 if wide else np.uint8).reshape(plane.height, -1)
            planes.append(torch.from_numpy(samples[:, : plane.width]))
            planes[-1].frame = frame  # else its memory goes to the next one
    return tuple(planes)


def ffmpeg_version() -> str:
    try:
        import av
    except ImportError as error:
        raise Unavailable("PyAV is not installed") from error
    return "libavcodec " + ".".join(map(str, av.library_versions["libavcodec"]))


@functools.cache
def _library() -> ctypes.CDLL:
    name = ctypes.util.find_library("de265")
    if name is None:
        raise Unavailable("libde265 is not installed (apt install libde265-0)")
    library = ctypes.CDLL(name)
    library.de265_get_version.restype = ctypes.c_char_p
    for function in ("new_decoder", "get_next_picture", "get_image_plane"):
        getattr(library, f"de265_{function}").restype = ctypes.c_void_p
    return library


def libde265_version() -> str:
    return _library().de265_get_version().decode()


def libde265(stream: bytes, threads: int) -> tuple[Tensor, ...]:
    """Every plane of every picture, copied: libde265 reuses a picture's memory after the next is asked for."""
    library = _library()
    decoder = ctypes.c_void_p(library.de265_new_decoder())
    try:
        if threads > 1:
            library.de265_start_worker_threads(decoder, threads)
        library.de265_push_data(decoder, stream, len(stream), ctypes.c_int64(0), None)
        library.de265_flush_data(decoder)
        planes: list[Tensor] = []
        more = ctypes.c_int(1)
        while more.value:
            error = library.de265_decode(decoder, ctypes.byref(more))
            while picture := library.de265_get_next_picture(decoder):
                planes += (_plane(library, ctypes.c_void_p(picture), channel) for channel in range(3))
            if error == WAITING_FOR_DATA:
                break
            if error:
                raise RuntimeError(f"libde265: error {error}")
        return tuple(planes)
    finally:
        library.de265_free_decoder(decoder)


def _plane(library: ctypes.CDLL, picture: ctypes.c_void_p, channel: int) -> Tensor:
    stride = ctypes.c_int()
    address = library.de265_get_image_plane(picture, channel, ctypes.byref(stride))
    width, height = (getattr(library, f"de265_get_image_{side}")(picture, channel) for side in ("width", "height"))
    wide = library.de265_get_bits_per_pixel(picture, channel) > 8
    rows = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_uint8)), (height, stride.value))
    bytes_a_row = width * (2 if wide else 1)
    copied = rows[:, :bytes_a_row].copy()
    return torch.from_numpy(copied.view(np.int16) if wide else copied)
