"""A run on the CPU alone, with few cores or with overlays: each thread takes a block of images the whole way, from
their files to their masks.

Nothing is handed from thread to thread, which costs a wake-up and a turn with Python's lock each time, and every stage
runs over a few images in turn, so that its code and tables are still in the core's cache. There are more threads than
cores: while one waits for a disk or for Python's lock, another computes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sized
from contextlib import suppress
from dataclasses import replace
from typing import Any

from isicrt.engine.channel import Stopped
from isicrt.engine.decoding import DecodeSlot
from isicrt.engine.errors import IsicrtError
from isicrt.engine.outcome import Outcome
from isicrt.engine.routes import BlockRoute, Item
from isicrt.engine.run_threads import GATHER_SECONDS, RunThreads, StageSettings
from isicrt.engine.sources import Job

Ended = tuple[Outcome, dict[str, Any] | None]
"""How an image has ended, and what the journal notes of its mask."""

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
        while len(block) < size and (jobs := self._next_jobs_for(block)):
            self._check_cut()
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

    def _next_jobs_for(self, block: list[Item]) -> list[Job]:
        """What is decoded waits neither for a list that ends in an error nor behind others for one that is slow."""
        if not block:
            return self._next_jobs(1)
        try:
            return self._next_jobs(1, patience=GATHER_SECONDS)
        except BaseException:  # raised again when the next block is begun
            return []

    def _check_cut(self) -> None:
        if self._is_cut:
            raise Stopped

    def _block_size(self) -> int:
        """Whole calls of the network. Near the end blocks are smaller, so that all threads end together."""
        together = self._block_route.at_once
        calls = math.ceil(self._settings.batch_size / together)
        if self._left is not None:
            calls = min(calls, math.ceil(max(1, self._left) / len(self._blocks) / together))
        return calls * together

    def _segment(self, block: list[Item]) -> None:
        with self._block_route.turn():
            self._check_cut()
            started = time.perf_counter()
            try:
                contents = self._block_route.segment(block)
            except IsicrtError:
                raise
            except Exception as error:  # runtimes have no common root of their errors
                raise self._inference_error(error, block) from error
            self.busy.add("infer", time.perf_counter() - started)
        self._check_cut()
        if self._settings.ledger is not None:
            self._settings.ledger.announce([item.job for item in block])
        ended: list[Ended] = []
        told = time.monotonic()
        try:
            for item, content in zip(block, contents, strict=True):
                self._check_cut()
                ended.append(self._finish(replace(item, content=content)))
                if time.monotonic() - told > _RECORD_SECONDS:
                    now, ended, told = ended, [], time.monotonic()
                    self._tell(now)
        except BaseException:
            with suppress(IsicrtError, Stopped):  # what there is to say is being said
                self._tell(ended)
            raise
        self._tell(ended)

    def _tell(self, ended: list[Ended]) -> None:
        if not ended:
            return
        try:
            self._record(*ended)
        except Stopped:
            if self._settings.ledger is not None:  # whose a mask is that was announced is known, and not forgotten
                self._settings.ledger.record(*ended)
            raise
        for outcome, _ in ended:
            self._outcomes.put(outcome)
