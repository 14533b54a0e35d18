"""JPEG files into pixels on the GPU, through nvImageCodec: its hardware decoder, its CUDA decoder, and both.

EXIF orientation is ignored, as everywhere in isicrt, and chroma is upsampled as libjpeg-turbo does it
(``fancy_upsampling``). What is not an ordinary, whole JPEG is left to the CPU, whose verdict counts.
https://docs.nvidia.com/cuda/nvimagecodec/
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg

from isicrt.engine.cores import available_cores
from isicrt.engine.cuda_driver import keep_freed_memory
from isicrt.engine.errors import MissingDependencyError, ModelError, SettingsError
from isicrt.engine.images import MAX_PIXELS

HARDWARE_LOAD = 0.35
"""Share of a batch for the hardware decoder of data-centre GPUs; the CUDA cores take the rest. Of rendered
JPEGs of 512 px an H200 decodes a fifth more so than with 0.65, DALI's default, with all or with none
(docs/gpu-measurements.md)."""
KEPT_BYTES = 3 << 30
"""Of decoded images that were freed, until the decoder closes: what three full batches have, see
`isicrt.engine.gpu_batch.BATCH_PIXELS`."""
_MARKERS = (b"\xff\xd8\xff", b"\xff\xd9")
_TAIL = 1024


@dataclass
class DeviceImage:
    """A decoded image in device memory."""

    address: int
    pitch: int
    """Bytes from one row to the next."""
    size: tuple[int, int]
    """(height, width) in pixels; uint8, RGB interleaved."""
    owner: Any
    """Keeps the memory; to be held until the stream has read it."""

    def release(self) -> None:
        """Give the memory back, in the order of the stream that it was decoded for, which must still be there.

        An object that somebody still holds, such as the traceback of an error, then keeps nothing.
        """
        self.owner = None


def suits_gpu(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG that the GPU decodes as the CPU would; None for everything else.

    The GPU's decoder is content with half a file, has no CMYK, and takes three components for YCbCr, also where
    libjpeg-turbo finds them to be RGB (by Adobe's marker, or components called R, G and B): so a file must have its end
    marker, and be grey or YCbCr.
    """
    if not data.startswith(_MARKERS[0]) or _MARKERS[1] not in data[-_TAIL:]:
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    if colours not in ("Gray", "YCbCr") or width * height > MAX_PIXELS:
        return None
    return height, width


class GpuDecoder:
    """nvImageCodec on one GPU. Used by one thread at a time.

    Args:
        device: index of the GPU; `CPU_ONLY` runs nvImageCodec's own CPU decoders, into host memory.
        hardware_load: share of a batch for the hardware decoder, 0..1; the CUDA cores take the rest. All of it, where
            the GPU has no such decoder.
        cpu_threads: of nvImageCodec, for parsing and Huffman decoding; None for one a core that may be used.

    Raises:
        SettingsError: `hardware_load` is out of its range.
        MissingDependencyError: nvImageCodec is not installed.
        ModelError: it finds no GPU, or none that it can use.
    """

    CPU_ONLY = -99999  # NVIMGCODEC_DEVICE_CPU_ONLY

    def __init__(
        self, device: int = 0, *, hardware_load: float = HARDWARE_LOAD, cpu_threads: int | None = None
    ) -> None:
        if not 0 <= hardware_load <= 1:
            raise SettingsError(f"hardware decoder load {hardware_load}: must lie between 0 and 1")
        # On its own it writes lines in colour to the standard error for each file that it refuses, of which isicrt says
        # what there is to say. It reads this when it is imported.
        os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")
        try:
            nvimgcodec: Any = importlib.import_module("nvidia.nvimgcodec")
        except (ImportError, OSError) as error:
            raise MissingDependencyError("nvImageCodec", "gpu", str(error)) from error
        self._codec = nvimgcodec
        self._give_memory_back: Callable[[], None] = lambda: None
        kind = nvimgcodec.BackendKind
        if device == self.CPU_ONLY:
            backends = [nvimgcodec.Backend(kind.CPU_ONLY)]
        else:
            hardware = nvimgcodec.Backend(
                kind.HW_GPU_ONLY, load_hint=hardware_load, load_hint_policy=nvimgcodec.LoadHintPolicy.FIXED
            )
            backends = [hardware, nvimgcodec.Backend(kind.GPU_ONLY), nvimgcodec.Backend(kind.HYBRID_CPU_GPU)]
            self._give_memory_back = keep_freed_memory(device, KEPT_BYTES)
        try:
            self._decoder: Any = nvimgcodec.Decoder(
                device_id=device,
                max_num_cpu_threads=_codec_threads(cpu_threads),
                backends=backends,
                options=":fancy_upsampling=1",
            )
        except RuntimeError as error:
            self._give_memory_back()
            raise ModelError(f"nvImageCodec cannot start a decoder on GPU {device}: {error}") from error
        self._parameters: Any = nvimgcodec.DecodeParams(
            apply_exif_orientation=False,
            color_spec=nvimgcodec.ColorSpec.SRGB,
            sample_format=nvimgcodec.SampleFormat.I_RGB,
        )

    def check(self, stream: int) -> None:
        """Decode a few pixels, so that what is missing is found before the first batch.

        Raises:
            ModelError: the GPU decodes no JPEG here.
        """
        jpeg = simplejpeg.encode_jpeg(np.zeros((16, 16, 3), np.uint8))
        if self.decode([jpeg], stream)[0] is None:
            raise ModelError(
                "nvImageCodec is installed but decodes no JPEG on this GPU. It needs libnvjpeg "
                "(pip install 'nvidia-nvimgcodec-cu13[nvjpeg]') and a driver for its CUDA"
            )

    def decode(self, files: Sequence[bytes | memoryview], stream: int) -> list[DeviceImage | None]:
        """Decode a batch; what follows on the stream sees the pixels.

        Args:
            files: JPEGs that `suits_gpu` let through.
            stream: handle of the CUDA stream.

        Returns:
            An image for each file, in order; None for one that could not be decoded.
        """
        streams: list[Any] = []
        readable = []
        for index, data in enumerate(files):
            try:
                whole = data if isinstance(data, bytes) else np.frombuffer(data, np.uint8)
                streams.append(self._codec.CodeStream(whole))
            except (RuntimeError, ValueError):  # a header that it does not understand
                continue
            readable.append(index)
        images: list[DeviceImage | None] = [None] * len(files)
        if not streams:
            return images
        try:
            decoded = self._decoder.decode(streams, params=self._parameters, cuda_stream=stream)
        except RuntimeError:
            # It says so of the whole batch, and it may be one file's fault. Where it is the device's, what is queued
            # next on the stream fails too, and that is not passed over.
            return images
        for index, image in zip(readable, decoded, strict=True):
            images[index] = None if image is None else _described(image)
        return images

    def close(self) -> None:
        """Give the decoder's memory back, and what images that were released before have left in the device's pool."""
        self._decoder = None
        self._give_memory_back()


def _codec_threads(wanted: int | None) -> int:
    """As nvImageCodec takes it. 0, its own choice, is all cores of the machine but one, whatever a container may use of
    them; where it is asked for more than that, it says so on the standard error and takes as many."""
    count = wanted or available_cores()
    return count if count < (os.cpu_count() or 1) else 0


def _described(image: Any) -> DeviceImage | None:
    on_device = image.buffer_kind.name == "STRIDED_DEVICE"
    interface = image.__cuda_array_interface__ if on_device else image.__array_interface__
    height, width, channels = interface["shape"]
    if channels != 3 or interface["typestr"] != "|u1":
        return None
    strides = interface.get("strides")
    return DeviceImage(int(interface["data"][0]), strides[0] if strides else 3 * width, (height, width), image)
