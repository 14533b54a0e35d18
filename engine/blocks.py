"""A run on the CPU alone: each thread takes a block of images the whole way, from their files to their masks.

Nothing is handed from thread to thread, which costs a wake-up and a turn with Python's lock each time, and every stage
runs over a few images in turn, so that its code and tables are still in the core's cache. There are more threads than
cores: while one waits for a disk or for Python's lock, another computes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sized
from dataclasses import replace
from typing import Any

from isicrt.engine.channel import Stopped
from isicrt.engine.decoding import DecodeSlot
from isicrt.engine.errors import IsicrtError
from isicrt.engine.outcome import Outcome
from isicrt.engine.routes import BlockRoute, Item
from isicrt.engine.run_threads import GATHER_SECONDS, RunThreads, StageSettings
from isicrt.engine.sources import Job

_RECORD_SECONDS = 0.1
"""What has ended is told at least so often where a mask takes long, and once a block where it does not."""


class BlockRun(RunThreads):
    """The threads of a run in blocks. See `RunThreads`.

    Args:
        workers: threads.
    """

    slot_name = "worker"

    def __init__(self, jobs: Iterable[Job], route: BlockRoute, settings: StageSettings, workers: int) -> None:
        super().__init__(jobs, route, settings, workers)
        self._left = len(jobs) if isinstance(jobs, Sized) else None
        self._block_route = route
        # Of each worker and, where it is given up while it decodes, its successor.
        self._blocks: list[list[Item]] = [[] for _ in range(workers)]

    def _work(self, slot: DecodeSlot) -> None:
        block = self._blocks[slot.number]
        while True:
            self._gather(slot, block)
            if not block:
                return
            self._segment(block)
            block.clear()

    def _gather(self, slot: DecodeSlot, block: list[Item]) -> None:
        """Decode until the block is full, or has enough for a call of the network and took long."""
        size, until = self._block_size(), time.monotonic() + GATHER_SECONDS
        while len(block) < size and (jobs := self._next_jobs(1)):
            if self._left is not None:
                self._left -= 1  # a guess is enough, so there is no lock
            slot.begin(jobs[0])
            ended = self._before(jobs[0]) or self._read(jobs[0])
            slot.end()
            if isinstance(ended, Outcome):
                self._end((ended, None))
            else:
                block.append(ended)
            if len(block) >= self._block_route.at_once and time.monotonic() > until:
                return

    def _block_size(self) -> int:
        """Near the end blocks are smaller, so that all threads end together."""
        size = self._settings.batch_size
        if self._left is None:
            return size
        calls = math.ceil(max(1, self._left) / len(self._blocks) / self._block_route.at_once)
        return min(size, calls * self._block_route.at_once)

    def _segment(self, block: list[Item]) -> None:
        started = time.perf_counter()
        try:
            contents = self._block_route.segment(block)
        except IsicrtError:
            raise
        except Exception as error:  # runtimes have no common root of their errors
            raise self._inference_error(error, block) from error
        self.busy.add("infer", time.perf_counter() - started)
        if self._settings.ledger is not None:
            self._settings.ledger.announce([item.job for item in block])
        ended: list[tuple[Outcome, dict[str, Any] | None]] = []
        told = time.monotonic()
        try:
            for item, content in zip(block, contents, strict=True):
                if self._is_cut:
                    raise Stopped
                ended.append(self._finish(replace(item, content=content)))
                if time.monotonic() - told > _RECORD_SECONDS:
                    self._end(*ended)
                    ended, told = [], time.monotonic()
        finally:
            if ended:
                self._end(*ended)
