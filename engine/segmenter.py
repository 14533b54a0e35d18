"""Segmenter: a model that is loaded once and segments images and folders."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from types import TracebackType
from typing import Any

import numpy as np

from isicrt.engine import shipped
from isicrt.engine.card import ModelCard
from isicrt.engine.errors import ModelError, SettingsError
from isicrt.engine.geometry import UInt8Array, resize_image, upsample_probability
from isicrt.engine.gpu_stages import check_decode, open_chain
from isicrt.engine.images import MAX_PIXELS, decode_image
from isicrt.engine.isolation import ImageDecoder
from isicrt.engine.ledger import Ledger
from isicrt.engine.masks import restore_mask
from isicrt.engine.model_identity import loaded_sha256, mask_settings
from isicrt.engine.overlay import OverlayFolder
from isicrt.engine.pipeline import MOST_PROCESSES, Outcome, RunSummary, run_jobs
from isicrt.engine.runtime import Runtime, open_runtime
from isicrt.engine.sources import Images, find_jobs

_left_behind: list[Runtime] = []
"""Of a process that this one was forked from. Never freed: they would wait for their threads, which stayed there."""


class Segmenter:
    """Segments single images and whole folders with one model. Not for two threads at a time. A copy, or one that is
    sent to another process or used in a forked one, opens the model's file again, with the same settings; a ModelError
    where it was changed.

    >>> with Segmenter() as segmenter:  # doctest: +SKIP
    ...     mask = segmenter.segment("lesion.jpg")
    ...     probability = segmenter.probability("lesion.jpg")
    ...     summary = segmenter.segment_folder("images", "masks")

    Args:
        model: an ``.onnx`` or ``.plan`` file, the name of a model that ships, or None for the default one.
        batch_size: images in one network call when a folder is segmented; a model that was built for less gets less.
            None: 8, and of a plan the largest that it takes.
        threads: CPU threads to use; None for all cores.
        threshold: in (0, 1); a pixel whose probability is above it is lesion. None for the model card's.

    Raises:
        SettingsError: an argument out of its range.
        ModelError: no such model, or not one of ours.
        MissingDependencyError: the model needs a runtime that is not installed.
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | None = None,
        *,
        batch_size: int | None = None,
        threads: int | None = None,
        threshold: float | None = None,
    ) -> None:
        batch_size, threads = _whole("batch_size", batch_size), _whole("threads", threads)
        self._threshold = None if threshold is None else _share("threshold", threshold)
        # A program may go elsewhere, and another file may lie there, before a folder is segmented.
        self._model = shipped.resolve(model).absolute()
        self.runtime: Runtime = open_runtime(self._model, threads=threads)
        self._process = os.getpid()
        self._sha256 = loaded_sha256(self.runtime, self._model)
        most = self.runtime.max_batch
        self._batch_size = min(batch_size or most or 8, most or batch_size or 8)
        self._threads = threads
        self._given: dict[str, Any] = {"batch_size": batch_size, "threads": threads, "threshold": self._threshold}
        self._closed = False

    @property
    def card(self) -> ModelCard:
        """The model's card."""
        return self.runtime.card

    def segment(self, image: str | os.PathLike[str] | UInt8Array) -> UInt8Array:
        """Segment one image.

        Args:
            image: a file, or uint8 pixels of H x W x 3 in RGB order.

        Returns:
            uint8, H x W, 0 background and 255 lesion, at the image's stored pixel grid.

        Raises:
            ImageError: the file cannot be decoded.
            SettingsError: the array is not uint8 of H x W x 3.
        """
        probability, native_size = self._infer(image)
        mask = restore_mask(
            probability,
            native_size,
            threshold=self.card.threshold if self._threshold is None else self._threshold,
            **self.card.clean_up,
        )
        return mask.view(np.uint8) * np.uint8(255)

    def probability(self, image: str | os.PathLike[str] | UInt8Array) -> UInt8Array:
        """What the network says of one image, before a threshold is applied and the mask is cleaned: for thresholds of
        your own, or to see where it is in doubt. Of an image that the model looks at again, the mean of its views.

        Args:
            image: as for `segment`.

        Returns:
            uint8, H x W, the probability of lesion in 255ths, interpolated to the image's stored pixel grid. `segment`
            takes the pixels above 255 times the threshold, and cleans them.

        Raises:
            As `segment`.
        """
        return upsample_probability(*self._infer(image))

    def _infer(self, image: str | os.PathLike[str] | UInt8Array) -> tuple[UInt8Array, tuple[int, int]]:
        """The network's probability map, at its own size, and (height, width) of the image."""
        native_size: tuple[int, int]
        if isinstance(image, (str, os.PathLike)):
            decoded = decode_image(image, self.card.input_size)
            pixels, native_size = decoded.pixels, decoded.native_size
        else:
            pixels, native_size = resize_image(_checked(image), self.card.input_size), image.shape[:2]
        (probability,) = self._runtime_here().infer(np.ascontiguousarray(pixels[None]))
        return probability, native_size

    def _runtime_here(self) -> Runtime:
        """The runtime, with threads in this process."""
        if self._process != os.getpid() and not self._closed:
            again, arguments = self.__reduce__()
            opened = again(*arguments).runtime
            _left_behind.append(self.runtime)
            self.runtime, self._process = opened, os.getpid()
        return self.runtime

    def segment_folder(
        self,
        images: Images,
        out: str | os.PathLike[str],
        *,
        mask_bits: int = 1,
        overlays: str | os.PathLike[str] | None = None,
        on_outcome: Callable[[Outcome], None] | None = None,
        existing: str = "resume",
        retry_failed: bool = False,
        on_clash: str = "refuse",
        decode: str = "auto",
        processes: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> RunSummary:
        """Segment a folder, a glob pattern, a list or some files into masks; an image that fails costs itself only.

        Outcomes and messages name paths as they were given; where these are relative, the program must stay in its
        current folder until the run ends.

        Args:
            images: see `isicrt.engine.sources.find_jobs`.
            out: the folder for the masks and their journal, see `isicrt.engine.ledger.Ledger`.
            mask_bits: 1 or 8 bits a pixel.
            overlays: a folder for JPEGs of the images with the outline of the mask.
            on_outcome: called for each image as it ends. It must not use this segmenter: with a plan and ``decode`` on
                the GPU, `segment` and `probability` raise ModelError meanwhile.
            existing: ``resume`` skips what an earlier run did with this model and these settings, and masks that were
                changed by hand since (see `Outcome.kept`; of another size or of 0 and 1, they fail); ``overwrite``
                does everything.
            retry_failed: try unchanged files again that failed because of what is in them.
            on_clash: where two images claim one mask, see `isicrt.engine.sources.find_jobs`.
            decode: ``auto``, ``gpu`` or ``cpu``, see `isicrt.engine.gpu_stages.open_chain`.
            processes: that segment images, or finish masks, beside this one, see `isicrt.engine.pipeline.run_jobs`; 0
                for none, None for a choice that fits the cores.
            max_pixels: an image of more fails, so that no single one takes all of the memory.

        Returns:
            What the run did. `RunSummary.failures` names images that failed, with the reason, and `RunSummary.left_out`
            what was found and is no image that isicrt reads; `on_outcome` is told of all that failed, and of what there
            is to know of the others.

        Raises:
            DataError: no image, masks that would clash, files of somebody else in their place, another run in `out`,
                or a folder that cannot be written (any more).
            SettingsError: an argument out of its range, or one folder for masks and overlays; see also `find_jobs`,
                `isicrt.engine.pipeline.run_jobs`, `open_chain`.
            ModelError: this segmenter is closed; see also `run_jobs` and `open_chain`.
            MissingDependencyError: see `open_chain`.
        """
        if self._closed:
            raise ModelError(f"{self._model}: this segmenter is closed")
        # Before there is a folder with a journal; and numpy's numbers as Python's, which a journal takes.
        check_decode(decode, self._model)
        if mask_bits not in (1, 8):
            raise SettingsError(f"mask_bits ({mask_bits!r}): must be 1 or 8")
        mask_bits, processes = int(mask_bits), _whole("processes", processes, 0, MOST_PROCESSES)
        max_pixels = _whole("max_pixels", max_pixels) or MAX_PIXELS
        runtime = self._runtime_here()
        jobs = find_jobs(images, out, overlays=overlays, on_clash=on_clash)
        ledger = Ledger(
            out,
            jobs,
            model={"name": self.card.name, "sha256": self._sha256},
            settings=mask_settings(self.card, self._threshold, mask_bits),
            existing=existing,
            retry_failed=retry_failed,
            overlays=overlays,
        )
        with (
            ledger,
            ImageDecoder(max_pixels=max_pixels) as decoder,
            open_chain(runtime, decode, threshold=self._threshold, threads=self._threads) or nullcontext() as chain,
        ):
            summary = run_jobs(
                jobs,
                runtime,
                batch_size=self._batch_size,
                threshold=self._threshold,
                threads=self._threads,
                processes=processes,
                mask_bits=mask_bits,
                overlay=None if overlays is None else OverlayFolder(out, overlays, run=ledger.run, decode=decoder),
                on_outcome=on_outcome,
                ledger=ledger,
                chain=chain,
                decode=decoder,
                max_pixels=max_pixels,
            )
            done = summary.images - summary.failed
            ledger.finish({"done": done, "failed": summary.failed, "skipped": summary.skipped})
        return replace(summary, left_out=jobs.left_out)

    def close(self) -> None:
        """Give back the model's threads and memory."""
        self._closed = True
        if self._process == os.getpid():
            self.runtime.close()
        else:
            _left_behind.append(self.runtime)

    def __reduce__(self) -> tuple[Callable[..., Segmenter], tuple[Any, ...]]:
        # Threads and native code cannot be sent to another process, nor be copied.
        return _opened_again, (partial(type(self), self._model, **self._given), self._sha256)

    def __enter__(self) -> Segmenter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(Exception) if kind is not None else nullcontext():  # what went wrong first is what matters
            self.close()


def _opened_again(again: Callable[[], Segmenter], sha256: str) -> Segmenter:
    """A copy. Raises ModelError where another file lies there by then: masks of one run are of one model."""
    copied = again()
    if copied._sha256 != sha256:
        copied.close()
        raise ModelError(f"{copied._model}: was changed since it was first read. Start again")
    return copied


def _whole(name: str, value: object, least: int = 1, most: int = sys.maxsize) -> int | None:
    """A setting that may be None; numpy's numbers as Python's, which a journal takes."""
    if value is None:
        return None
    if isinstance(value, (int, np.integer)) and least <= value <= most:
        return int(value)
    upper = "" if most == sys.maxsize else f" and at most {most}"
    raise SettingsError(f"{name} ({value!r}) must be a whole number of at least {least}{upper}")


def _share(name: str, value: object) -> float:
    if isinstance(value, (float, np.floating)) and 0 < value < 1:
        return float(value)
    raise SettingsError(f"{name} ({value!r}) must be a number between 0 and 1")


def _checked(image: object) -> UInt8Array:
    if not isinstance(image, np.ndarray):
        raise SettingsError(f"expected a file or a uint8 array of H x W x 3 (RGB), got {type(image).__name__}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise SettingsError(
            f"expected a uint8 array of H x W x 3 (RGB), got {image.dtype} of {' x '.join(map(str, image.shape))}"
        )
    return image
