"""DALI decodes and augments: one definition for training, one for validation, on the CPU or the GPU.

Masks are resampled by nearest neighbour, so they keep two values; soft ones bilinearly. A pipeline lives for one epoch
and its seed comes from the run's seed and the epoch, so a resumed run sees the random numbers that it would have seen.
https://docs.nvidia.com/deeplearning/dali/user-guide/docs/
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.dlpack
from torch import Tensor

from isicrt.engine.errors import DataError, IsicrtError, MissingDependencyError, SettingsError, TrainingError
from isicrt.engine.geometry import UInt8Array
from isicrt.trainer.artefacts import render_overlay
from isicrt.trainer.augmentation import colour, draw_matrices, lay_over, warp
from isicrt.trainer.cache import ResizedPairs
from isicrt.trainer.dataset import Pair
from isicrt.trainer.recipe import Augmentation, Recipe

FOREGROUND_ABOVE = 128
"""Of a mask's grey levels, as the official scorer does."""


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for one epoch of one run: well mixed, positive, below 2**31 as DALI wants it."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0] % (2**31 - 1)) + 1


def needs_dali(recipe: Recipe, *, cache: bool, copied: bool = False) -> bool:
    """Whether DALI feeds a run of the recipe: it augments, decodes in each epoch, or makes soft masks smaller.

    Args:
        recipe: of the run.
        cache: whether the pairs are kept resized.
        copied: whether the recipe's offline copies are made already.
    """
    if not cache:
        return True
    if recipe.augmentation is not None:
        return not (recipe.augmented_copies and copied)
    kept = max(recipe.input_size, recipe.largest_size)
    smaller = any((stage.input_size or recipe.input_size) < kept for stage in recipe.stages if stage.epochs)
    return recipe.soft_labels is not None and smaller


def check_dali() -> None:
    """Refuse what DALI is needed for where it is not there.

    Raises:
        MissingDependencyError: it is not installed.
        SettingsError: nor is there one for this system.
    """
    try:
        import nvidia.dali.pipeline  # noqa: F401
    except ImportError as error:
        if platform.system() != "Linux":
            raise SettingsError(
                "augmentation and --no-cache need NVIDIA DALI, which exists for Linux only. Train there (on Windows: "
                "in WSL2), or with the cache and a copy of the recipe that has `augmentation: null`, as "
                "report-unet-light does"
            ) from error
        raise MissingDependencyError("NVIDIA DALI", "train", str(error)) from error


class TrainingBatches:
    """The shuffled, augmented batches of one epoch.

    Args:
        pairs: what to learn from. The last incomplete batch is dropped; with fewer pairs than `batch_size`, one batch
            of all of them.
        size: pixels; the side of what comes out.
        batch_size: of images.
        augmentation: None for decoding and resizing alone.
        seed: of this epoch, see `epoch_seed`.
        resized: the same pairs from the cache, in place of decoding the files again.
        device: ``cpu``, or ``cuda`` for decoding and augmenting on the GPU.
        threads: of DALI's.

    ``order`` holds the indices of the pairs in the order in which they come out. Iterating gives ``(images, masks)``:
    uint8 N x size x size x 3, RGB, and float32 N x 1 x size x size, 0 or 1 or, where `resized` is soft, between.

    Raises:
        DataError: a file cannot be decoded.
        TrainingError: DALI fails at something else, such as for want of memory on the GPU.
        MissingDependencyError: DALI is not installed; see `check_dali`.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        size: int,
        batch_size: int,
        augmentation: Augmentation | None,
        seed: int,
        resized: ResizedPairs | None = None,
        device: str = "cpu",
        threads: int = 2,
    ) -> None:
        if not pairs:
            raise DataError("there is no image to train on")
        self.batch_size = min(batch_size, len(pairs))
        self._pairs = pairs
        self._size, self._augmentation, self._resized = size, augmentation, resized
        self._soft = resized is not None and resized.soft
        self._rng = np.random.default_rng(seed)
        self.order = self._rng.permutation(len(pairs))
        self._gpu = device == "cuda"
        self._held: tuple[Any, Any] | None = None
        self._pipe = self._build(seed, device, threads)

    def __len__(self) -> int:
        return len(self._pairs) // self.batch_size

    @property
    def _source_size(self) -> int:
        """Of the square that is augmented. It is larger than the output, so that a crop of it is not blurred."""
        if self._resized is not None:
            return int(self._resized.images.shape[1])
        return cache_size(self._size) if self._augmentation else self._size

    def _source(self) -> Iterator[tuple[list[UInt8Array], ...]]:
        """What DALI is fed: files or pixels; with augmentation, maps; with artefacts, overlays."""
        a = self._augmentation
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            chosen = self.order[start : start + self.batch_size]
            batch: tuple[list[Any], ...]
            if self._resized is None:
                pairs = [self._pairs[i] for i in chosen]
                batch = [_file(p.image) for p in pairs], [_file(p.mask) for p in pairs]
            else:
                batch = [self._resized.images[i] for i in chosen], [self._resized.masks[i][..., None] for i in chosen]
            if a is not None:
                batch += (list(draw_matrices(self._rng, a, self._source_size, self._size, len(chosen))),)
                if a.artefacts:
                    batch += ([self._overlay(a.artefacts) for _ in chosen],)
            yield batch

    def _overlay(self, probabilities: Mapping[str, float]) -> UInt8Array:
        overlay = render_overlay(self._rng, self._size, **probabilities)
        return np.concatenate([overlay.colour, overlay.alpha, overlay.visible], axis=2)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(len(self)):
            try:
                outputs = self._run()
            except RuntimeError as error:
                raise self._explained(error) from error
            images, levels = map(_tensor, outputs)
            if self._gpu:
                make_event: Any = torch.cuda.Event
                copied = make_event()
                copied.record()
                self._held = outputs, copied
            target = levels.float() / 255 if self._soft else (levels > FOREGROUND_ABOVE).float()
            yield images, target.permute(0, 3, 1, 2)

    def _explained(self, error: RuntimeError) -> IsicrtError:
        """What an error of DALI's means; it does not say which sample it was."""
        if "out of memory" in str(error) or "cudaErrorMemoryAllocation" in str(error):
            return TrainingError(
                "DALI finds too little memory on the GPU. Lower batch_size or input_size in the recipe, or end what "
                f"else runs on the GPU ({error})"
            )
        if self._resized is not None:
            return TrainingError(f"DALI cannot prepare a batch of the images in the cache ({error})")
        return DataError(
            "DALI cannot decode a training image or mask. Find it with: isicrt data check DIR. If that finds none, it "
            "is of a kind that DALI does not know, such as a TIFF of 1 bit: save it as PNG, or train without "
            f"--no-cache and without augmented_copies ({error})"
        )

    def _run(self) -> Any:
        """The next outputs of the pipeline, computed.

        On a GPU, DALI may write over outputs that nobody holds, on a stream of its own, which does not wait for the
        copies of `_tensor` on torch's. So they are held until those are made.
        """
        if self._held is not None:
            _, copied = self._held
            copied.synchronize()
            self._held = None
        return self._pipe.run()

    def _build(self, seed: int, device: str, threads: int) -> Any:
        check_dali()
        from nvidia.dali import fn, types
        from nvidia.dali.pipeline import Pipeline

        gpu = device == "cuda"
        a = self._augmentation
        kinds = [types.UINT8, types.UINT8] + ([types.FLOAT] if a else []) + ([types.UINT8] if a and a.artefacts else [])
        flat = self._resized is None
        ndims = [1 if flat else 3, 1 if flat else 3] + ([2] if a else []) + ([3] if a and a.artefacts else [])
        pipe = Pipeline(
            batch_size=self.batch_size,
            num_threads=threads,
            device_id=torch.cuda.current_device() if gpu else None,
            seed=seed,
            prefetch_queue_depth=2,
        )
        with pipe:
            layouts = ["" if n == 1 else "HWC" if n == 3 else "" for n in ndims]
            images, masks, *drawn = fn.external_source(
                source=self._source(), num_outputs=len(kinds), dtype=kinds, ndim=ndims, layout=layouts
            )
            if flat:
                images, masks = _decode(images, masks, gpu)
                images, masks = _resize(images, masks, self._source_size)
            elif gpu:
                images, masks = images.gpu(), masks.gpu()
            if a is None:
                images, masks = _resize(images, masks, self._size, self._soft)
            else:
                images, masks = warp(images, masks, drawn[0], a, self._source_size, self._size, self._soft)
                if a.artefacts:
                    images, masks = lay_over(images, masks, drawn[1].gpu() if gpu else drawn[1])
                images = colour(images, a, self._size, seed)
            pipe.set_outputs(images, masks)
        pipe.build()
        return pipe


def _file(path: Path) -> UInt8Array:
    try:
        return np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _tensor(batch: Any) -> Tensor:
    """A dense DALI batch as a torch tensor. The copy outlives DALI's buffer, which is used again for the next batch."""
    return torch.utils.dlpack.from_dlpack(batch.as_tensor()).clone()


def cache_size(size: int) -> int:
    """The side at which pairs are kept for training at `size` px: a third more, so that crops keep their detail."""
    return size * 4 // 3


def _decode(images: Any, masks: Any, gpu: bool) -> tuple[Any, Any]:
    from nvidia.dali import fn, types

    # Fancy upsampling, so that the GPU's chroma agrees with libjpeg's; the stored pixel grid, whatever EXIF says.
    images = fn.decoders.image(
        images,
        device="mixed" if gpu else "cpu",
        output_type=types.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,
    )
    masks = fn.decoders.image(masks, device="cpu", output_type=types.GRAY, adjust_orientation=False)
    return images, masks.gpu() if gpu else masks


def _resize(images: Any, masks: Any, size: int, soft: bool = False) -> tuple[Any, Any]:
    """To a square: antialiased triangle for images and for soft masks, nearest neighbour for the others."""
    from nvidia.dali import fn, types

    triangle = {"interp_type": types.INTERP_LINEAR, "antialias": True}
    images = fn.resize(images, size=(size, size), **triangle)
    return images, fn.resize(masks, size=(size, size), **(triangle if soft else {"interp_type": types.INTERP_NN}))
