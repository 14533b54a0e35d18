"""Images that processes segment, each from its file to its mask, see `isicrt.engine.task_process`.

A process has the network for itself, on one thread. It is asked twice for each share of images: to read them, and, once
the journal has announced their masks, to write those.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from isicrt.engine.errors import ImageError
from isicrt.engine.finishing import Finished, Finishing
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.images import DamagedImageError, Decoded, FileStamp
from isicrt.engine.isolation import TrustedDecoder
from isicrt.engine.output import OutputError
from isicrt.engine.runtime import ConcurrentRuntime
from isicrt.engine.task_process import MOST_AT_ONCE, ProcessLost, TaskProcess, end_with_run
from isicrt.engine.write_process import Answer, ask_to_finish, finish_all

_READ_SECONDS = 0.15
"""After so long a process says what it has read: with large images a whole share would keep the end waiting."""


@dataclass(frozen=True)
class Read:
    """An image that was decoded and is through the network; the process has its probability map."""

    native_size: tuple[int, int]
    """(height, width) in pixels."""
    stamp: FileStamp | None
    note: str | None = None


@dataclass(frozen=True)
class Unreadable:
    """An image that cannot be decoded."""

    reason: str
    damaged: FileStamp | None
    """See `isicrt.engine.outcome.Outcome`."""


@dataclass(frozen=True)
class Share:
    """What was read: of each image, in order, how it went; None for one that is for the run's own process."""

    images: list[Read | Unreadable | None]
    decode_seconds: float
    infer_seconds: float


@dataclass
class SegmentAll:
    """The task of a process. It answers to an empty question once its network is loaded, to paths of images with a
    `Share`, and to places in that share, with the masks to write, with an `Answer`."""

    open: Callable[[], ConcurrentRuntime]
    decode: TrustedDecoder
    finishing: Finishing
    batch_size: int
    """Images that are decoded one after the other, then go through the network, in whole calls of it."""
    run: int
    """The process of the run."""
    _runtime: ConcurrentRuntime | None = None
    _maps: dict[int, tuple[tuple[int, int], UInt8Array]] | None = None

    def __call__(self, question: Sequence[Path] | Sequence[tuple[int, Path]]) -> object:
        end_with_run(self.run)
        if self._runtime is None:
            self._runtime = self.open()
        places = [one for one in question if isinstance(one, tuple)]
        return self._finish(places) if places else self._read([one for one in question if isinstance(one, Path)])

    def _read(self, paths: Sequence[Path]) -> Share:
        assert self._runtime is not None
        share, self._maps = Share([], 0.0, 0.0), {}
        until = time.monotonic() + _READ_SECONDS
        block: dict[int, Decoded] = {}
        together = self._runtime.at_once
        size = max(1, self.batch_size // together) * together
        for place, path in enumerate(paths):
            started = time.perf_counter()
            found = self._decode(path)
            if isinstance(found, Decoded):
                block[place] = found
                share.images.append(Read(found.native_size, found.stamp, found.note))
            else:
                share.images.append(found)
            share = replace(share, decode_seconds=share.decode_seconds + time.perf_counter() - started)
            if len(block) == size:
                share = self._infer(share, block)
                block = {}
            # Whole calls of the network, of which the last one may have room.
            if time.monotonic() > until and len(block) % together == 0:
                break
        return self._infer(share, block) if block else share

    def _decode(self, path: Path) -> Decoded | Unreadable | None:
        assert self._runtime is not None
        try:
            return self.decode(path, self._runtime.card.input_size, large=False)
        except ImageError as error:
            return Unreadable(str(error), error.stamp if isinstance(error, DamagedImageError) else None)

    def _infer(self, share: Share, block: dict[int, Decoded]) -> Share:
        assert self._runtime is not None
        assert self._maps is not None
        started = time.perf_counter()
        maps = self._runtime.infer_alone(np.stack([image.pixels for image in block.values()]))
        for (place, image), probability in zip(block.items(), maps, strict=True):
            self._maps[place] = image.native_size, probability
        return replace(share, infer_seconds=share.infer_seconds + time.perf_counter() - started)

    def _finish(self, places: Sequence[tuple[int, Path]]) -> Answer:
        assert self._maps is not None
        maps = self._maps
        return finish_all(self.finishing, self.run, ((mask, *maps.pop(place)) for place, mask in places))


class ShareProcess:
    """One process that segments images, driven by one thread at a time; close it after the last call.

    It is started at once, and is of use when its network is loaded.

    Args:
        task: of all such processes of a run.
        number: of the process, from 0 to 254; it is in the names of its temporary files.
        seconds: that it may take for an image: after that it is given up, and the caller finds out which it was.
        command: see `TaskProcess`.
    """

    def __init__(self, task: SegmentAll, number: int, seconds: float, *, command: Sequence[str] | None = None) -> None:
        output = task.finishing.output
        self._output = None if output is None else output.of_process(number)
        own = replace(task, finishing=replace(task.finishing, output=self._output))
        self.process = TaskProcess(own, command, bulk="answer")
        self._seconds = seconds
        self._is_loaded = False
        self.error: OutputError | None = None
        """After it nothing can be written any more."""
        self._start()

    def _start(self) -> None:
        """Also where it was lost, a few times."""
        self._is_loaded = False
        while not self.process.is_over:
            with suppress(ProcessLost):
                self.process.ask_ahead([])
                return

    @property
    def is_ready(self) -> bool:
        """Whether it takes images now."""
        if not self._is_loaded and not self.process.is_over:
            try:
                self._is_loaded = self.process.has_answered()
            except ProcessLost:
                self._start()
        return self._is_loaded

    def read(self, paths: Sequence[Path]) -> Share:
        """Decode images, the first of at most `MOST_AT_ONCE`, and put them through the network."""
        try:
            share: Share = self.process.ask(list(paths), self._seconds * 1.25 + 0.25)
        except ProcessLost:
            self._start()
            return Share([None] * len(paths), 0.0, 0.0)
        return share

    def finish(self, places: Sequence[tuple[int, Path]]) -> list[Finished | None]:
        """Write masks of what was read last.

        Args:
            places: of the images in the share, and their masks' paths.

        Returns:
            How each ended; None for one that is left to the caller: the process is lost, or there is an `error`.
        """
        results: list[Finished | None] = [None] * len(places)
        try:
            masks = [mask for _, mask in places]
            finished, self.error = ask_to_finish(self.process, list(places), self._output, masks)
        except ProcessLost:
            self._start()
            return results
        results[: len(finished)] = finished
        return results

    def close(self, seconds: float) -> None:
        """End the process; see `TaskProcess.close`."""
        self.process.close(seconds)


def share_size(left: int | None, processes: int, together: int) -> int:
    """Images in a share: at most `MOST_AT_ONCE`, and near the end fewer, so that all processes end together.

    Args:
        left: images that nobody has taken; None where that is not known.
        processes: that share them.
        together: images in one call of the network.
    """
    if left is None:
        return MOST_AT_ONCE
    fair = -(-max(1, left) // (2 * processes))
    return max(1, min(MOST_AT_ONCE, -(-fair // together) * together))
