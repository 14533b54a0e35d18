"""The process behind `isicrt.engine.isolation`: takes paths on its standard input, gives pixels on its output.

It ends when its input does, which is when the run is gone, however that went.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import IO

import numpy as np
from PIL import Image

from isicrt.engine.errors import ImageError
from isicrt.engine.heap import keep_buffers
from isicrt.engine.images import MAX_PIXELS, DamagedImageError, decode_image
from isicrt.engine.isolation import HELLO, receive, send
from isicrt.engine.pixel_budget import LARGE_PIXELS

_MEMORY_BYTES, _PIXEL_BYTES = 12 << 30, 32
"""Address space of a worker, where the system can limit it: at least, and for each pixel that an image may have. A TIFF
takes 17 bytes a pixel, a WebP 22 (looks)."""


def main(max_pixels: int = MAX_PIXELS) -> None:
    """Serve until the input ends.

    Args:
        max_pixels: that an image may have.
    """
    warnings.simplefilter("ignore")
    # Pillow refuses what has more than twice as many. That is global to a process: only in one of our own is it ours to
    # move.
    Image.MAX_IMAGE_PIXELS = max_pixels
    _limit_memory(max_pixels)
    keep_buffers()
    commands, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    # What a codec prints must not get between the messages. Until here the run wants to know what went wrong.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(nowhere, stream)
    try:
        send(replies, HELLO)
        while True:
            _serve(commands, replies)
    except (EOFError, BrokenPipeError):
        pass


def _serve(commands: IO[bytes], replies: IO[bytes]) -> None:
    request = receive(commands)

    @contextmanager
    def admit(pixels: int) -> Iterator[None]:
        if pixels >= LARGE_PIXELS:  # large images take turns, and the run says whose it is
            send(replies, {"wants": pixels})
            receive(commands)
        yield

    try:
        height, width = request["size"]
        image = decode_image(request["path"], (height, width), max_pixels=request["max_pixels"], admit=admit)
    except ImageError as error:
        stamp = asdict(error.stamp) if isinstance(error, DamagedImageError) else None
        send(replies, {"error": str(error), "stamp": stamp})
        return
    pixels = np.ascontiguousarray(image.pixels)
    native, stamp = image.native_size, None if image.stamp is None else asdict(image.stamp)
    send(replies, {"native": native, "shape": pixels.shape[:2], "stamp": stamp, "note": image.note}, pixels.tobytes())


def _limit_memory(max_pixels: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    needed = max(_MEMORY_BYTES, _PIXEL_BYTES * max_pixels)
    limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    # macOS on Apple silicon has mapped more before a program begins, and refuses to take it away. Nor can it be more
    # than the system counts.
    with suppress(ValueError, OSError, OverflowError):
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
