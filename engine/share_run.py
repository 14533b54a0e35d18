"""A run on the CPU alone, with many cores: processes take shares of the images, from their files to their masks.

Each has a thread here that takes jobs, asks the journal, and notes what has become of them: per image that is next to
nothing, so that Python's lock, which all threads of a process share, is nobody's concern. Until its process has loaded
the network, and for what no process takes (see `isicrt.engine.share_process`), a thread works as in a run in blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from isicrt.engine.blocks import BlockRun, Ended
from isicrt.engine.decoding import DecodeSlot
from isicrt.engine.outcome import Outcome
from isicrt.engine.routes import BlockRoute, Item
from isicrt.engine.run_threads import RunThreads, StageSettings
from isicrt.engine.share_process import SegmentAll, ShareProcess, Unreadable, share_size
from isicrt.engine.sources import Job

_CLOSE_SECONDS, _CUT_SECONDS = 2.0, 0.1
"""What processes have to end, and those of a run that was stopped."""


class ShareRun(BlockRun):
    """The threads of a run in shares. See `RunThreads`.

    Args:
        task: of the processes.
        processes: at least 1, at most 255.
    """

    def __init__(
        self, jobs: Iterable[Job], route: BlockRoute, settings: StageSettings, task: SegmentAll, processes: int
    ) -> None:
        super().__init__(jobs, route, settings, processes)
        self._task = task
        # Of each thread and, where it is given up while it decodes, its successor: its process, jobs that nobody has
        # read, and jobs that no process takes.
        self._processes: list[ShareProcess | None] = [None] * processes
        self._unread: list[deque[Job]] = [deque() for _ in range(processes)]
        self._own: list[deque[Job]] = [deque() for _ in range(processes)]

    def stop(self) -> None:
        """See `RunThreads.stop`."""
        RunThreads.stop(self)
        processes = [process for process in self._processes if process is not None]
        for process in processes:
            process.process.hang_up()
        for process in processes:
            process.close(_CUT_SECONDS if self._draining or self.error is not None else _CLOSE_SECONDS)

    def _work(self, slot: DecodeSlot) -> None:
        process = self._processes[slot.number]
        if process is None:
            process = ShareProcess(self._task, slot.number, self._settings.decode_timeout)
            self._processes[slot.number] = process
        unread, own = self._unread[slot.number], self._own[slot.number]
        while not (self._takes_no_more() and (unread or own)):
            if own:
                self._do_own(slot, own.popleft())
            elif process.is_ready:
                self._take(slot, unread)
                if not unread:
                    return
                self._share(process, unread, own)
            elif unread:
                own.extend(unread)
                unread.clear()
            elif not self._do_block(slot):
                return

    def _do_own(self, slot: DecodeSlot, job: Job) -> None:
        """An image that no process takes."""
        slot.begin(job)
        ended = self._read(job)
        slot.end()
        if isinstance(ended, Outcome):
            self._end((ended, None))
        else:
            self._segment([ended])

    def _do_block(self, slot: DecodeSlot) -> bool:
        """One block in this process. False where no job is left."""
        block = self._blocks[slot.number]
        self._gather(slot, block)
        if not block:
            return False
        self._segment(block)
        block.clear()
        return True

    def _take(self, slot: DecodeSlot, unread: deque[Job]) -> None:
        """Jobs for one share; those that have ended already are told of."""
        most = share_size(self._left, len(self._processes), self._block_route.at_once)
        while not unread and (jobs := self._next_jobs(most)):
            if self._left is not None:
                self._left -= len(jobs)
            for job in jobs:
                slot.begin(job)
                before = self._before(job)
                slot.end()
                if before is None:
                    unread.append(job)
                else:
                    self._end((before, None))

    def _share(self, process: ShareProcess, unread: deque[Job], own: deque[Job]) -> None:
        share = process.read([job.image for job in unread])
        self.busy.add("infer", share.infer_seconds)
        self.busy.add("decode", share.decode_seconds, ago=share.infer_seconds)
        self._check_cut()
        read: list[tuple[int, Item]] = []
        for place, found in enumerate(share.images):
            job = unread.popleft()
            if found is None:
                own.append(job)
            elif isinstance(found, Unreadable):
                self._end((Outcome(job, found.reason, None, None, damaged=found.damaged), None))
            else:
                read.append((place, Item(job, found.native_size, None, found.stamp)))
        if not read:
            return
        if self._settings.ledger is not None:
            self._settings.ledger.announce([item.job for _, item in read])
        finished = process.finish([(place, item.job.mask) for place, item in read])
        ended: list[Ended] = []
        for (_, item), done in zip(read, finished, strict=True):
            if done is not None:
                ended.append(self._noted(item, done))
            elif process.error is None:
                own.append(item.job)
        self._tell(ended)
        if process.error is not None:
            raise process.error
