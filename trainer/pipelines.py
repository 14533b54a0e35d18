"""DALI decodes and augments: one definition for training, one for validation, on the CPU or the GPU.

Every random number is drawn once and given to the image and to its mask; masks are resampled by nearest neighbour,
so they keep two values. A pipeline lives for one epoch and its seed comes from the run's seed and the epoch, so a
resumed run sees the random numbers that it would have seen.
https://docs.nvidia.com/deeplearning/dali/user-guide/docs/
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.dlpack
from torch import Tensor

from isicrt.engine.errors import DataError, MissingDependencyError
from isicrt.engine.geometry import UInt8Array
from isicrt.trainer.dataset import Pair
from isicrt.trainer.recipe import Augmentation

FOREGROUND_ABOVE = 128
"""Of a mask's grey levels, as the official scorer does."""


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for one epoch of one run: well mixed, positive, below 2**31 as DALI wants it."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0] % (2**31 - 1)) + 1


class TrainingBatches:
    """The shuffled, augmented batches of one epoch.

    Args:
        pairs: what to learn from. The last incomplete batch is dropped; with fewer pairs than `batch_size`, one batch
            of all of them.
        size: pixels; the side of what comes out.
        batch_size: of images.
        augmentation: None for decoding and resizing alone.
        seed: of this epoch, see `epoch_seed`.
        device: ``cpu``, or ``cuda`` for decoding and augmenting on the GPU.
        threads: of DALI's.

    ``order`` holds the indices of the pairs in the order in which they come out. Iterating gives ``(images, masks)``:
    uint8 N x size x size x 3, RGB, and float32 N x 1 x size x size, 0 or 1.

    Raises:
        DataError: a file cannot be decoded.
        MissingDependencyError: DALI is not installed.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        size: int,
        batch_size: int,
        augmentation: Augmentation | None,
        seed: int,
        device: str = "cpu",
        threads: int = 2,
    ) -> None:
        if not pairs:
            raise DataError("there is no image to train on")
        self.batch_size = min(batch_size, len(pairs))
        self._pairs = pairs
        self.order = np.random.default_rng(seed).permutation(len(pairs))
        self._device = device
        self._pipe = _pipeline(self._source(), size, self.batch_size, augmentation, seed, device, threads)

    def __len__(self) -> int:
        return len(self._pairs) // self.batch_size

    def _source(self) -> Iterator[tuple[list[UInt8Array], list[UInt8Array]]]:
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            chosen = [self._pairs[i] for i in self.order[start : start + self.batch_size]]
            yield [_file(p.image) for p in chosen], [_file(p.mask) for p in chosen]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(len(self)):
            try:
                images, masks = self._pipe.run()
            except RuntimeError as error:  # DALI does not say which sample it was
                raise DataError(
                    f"DALI cannot decode a training image or mask. Find it with: isicrt data check DIR ({error})"
                ) from error
            yield _tensor(images), (_tensor(masks) > FOREGROUND_ABOVE).permute(0, 3, 1, 2).float()


def _file(path: Path) -> UInt8Array:
    try:
        return np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _tensor(batch: Any) -> Tensor:
    """A dense DALI batch as a torch tensor. The copy outlives DALI's buffer, which is used again for the next batch."""
    return torch.utils.dlpack.from_dlpack(batch.as_tensor()).clone()


def _pipeline(
    source: Iterator[Any],
    size: int,
    batch_size: int,
    augmentation: Augmentation | None,
    seed: int,
    device: str,
    threads: int,
) -> Any:
    try:
        from nvidia.dali import fn, types
        from nvidia.dali.pipeline import Pipeline
    except ImportError as error:
        raise MissingDependencyError("NVIDIA DALI", "train", str(error)) from error

    gpu = device == "cuda"
    pipe = Pipeline(
        batch_size=batch_size,
        num_threads=threads,
        device_id=torch.cuda.current_device() if gpu else None,
        seed=seed,
        prefetch_queue_depth=2,
    )
    with pipe:
        encoded_images, encoded_masks = fn.external_source(source=source, num_outputs=2, dtype=types.UINT8, ndim=1)
        # Fancy upsampling, so that the GPU's chroma agrees with libjpeg's; the stored pixel grid, whatever EXIF says.
        images = fn.decoders.image(
            encoded_images,
            device="mixed" if gpu else "cpu",
            output_type=types.RGB,
            adjust_orientation=False,
            jpeg_fancy_upsampling=True,
        )
        masks = fn.decoders.image(encoded_masks, device="cpu", output_type=types.GRAY, adjust_orientation=False)
        if gpu:
            masks = masks.gpu()
        if augmentation is None:
            images, masks = _resize(images, masks, size)
        else:
            images, masks = _augment(images, masks, size, augmentation)
        pipe.set_outputs(images, masks)
    pipe.build()
    return pipe


def _resize(images: Any, masks: Any, size: int) -> tuple[Any, Any]:
    """To the square that the network sees: antialiased triangle for images, nearest neighbour for masks."""
    from nvidia.dali import fn, types

    images = fn.resize(images, size=(size, size), interp_type=types.INTERP_LINEAR, antialias=True)
    return images, fn.resize(masks, size=(size, size), interp_type=types.INTERP_NN)


def _augment(images: Any, masks: Any, size: int, a: Augmentation) -> tuple[Any, Any]:
    """Random crop, flips, rotation, colour jitter, noise. Each draw below is one number a sample, used for both."""
    from nvidia.dali import fn, math, types

    def uniform(low: float, high: float) -> Any:
        return fn.random.uniform(range=(low, high)) if low < high else low

    # Crop: zoom is the side of a square crop; the aspect jitter shortens one of the sides.
    zoom = uniform(a.min_zoom, 1.0)
    if a.max_aspect > 1:
        log_ratio = uniform(-float(np.log(a.max_aspect)), float(np.log(a.max_aspect)))
        height, width = zoom * math.min(math.exp(log_ratio), 1.0), zoom * math.min(math.exp(-log_ratio), 1.0)
    else:
        height, width = zoom, zoom
    if a.min_zoom < 1 or a.max_aspect > 1:
        window: dict[str, Any] = {"axes": (0, 1), "normalized_anchor": True, "normalized_shape": True}
        start = fn.stack(uniform(0.0, 1.0) * (1.0 - height), uniform(0.0, 1.0) * (1.0 - width))
        shape = fn.stack(height, width)
        images, masks = fn.slice(images, start, shape, **window), fn.slice(masks, start, shape, **window)
    images, masks = _resize(images, masks, size)

    # Colour before rotation, so that the corners which come in are black whatever the contrast.
    images = fn.color_twist(
        images,
        brightness=uniform(1 - a.brightness, 1 + a.brightness),
        contrast=uniform(1 - a.contrast, 1 + a.contrast),
        saturation=uniform(1 - a.saturation, 1 + a.saturation),
        hue=uniform(-a.hue, a.hue),
    )
    if a.flip:
        flips = {"horizontal": fn.random.coin_flip(), "vertical": fn.random.coin_flip()}
        images, masks = fn.flip(images, **flips), fn.flip(masks, **flips)
    if a.rotate_probability and a.max_angle:
        angle = fn.random.coin_flip(probability=a.rotate_probability) * uniform(-a.max_angle, a.max_angle)
        rotation = {"angle": angle, "keep_size": True, "fill_value": 0}
        images = fn.rotate(images, interp_type=types.INTERP_LINEAR, **rotation)
        masks = fn.rotate(masks, interp_type=types.INTERP_NN, **rotation)

    if a.max_noise:
        images = fn.noise.gaussian(images, stddev=uniform(0.0, a.max_noise))
    return images, masks
