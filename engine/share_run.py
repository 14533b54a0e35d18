"""A run on the CPU alone, with many cores: processes take shares of the images, from their files to their masks.

Each has a thread here that takes jobs, asks the journal, and notes what has become of them: per image that is next to
nothing, so that Python's lock, which all threads of a process share, is nobody's concern. Until its process has loaded
the network, and for what no process takes (see `isicrt.engine.share_process`), a thread works as in a run in blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from isicrt.engine.blocks import BlockRun, Ended
from isicrt.engine.channel import Stopped
from isicrt.engine.decoding import DecodeSlot
from isicrt.engine.outcome import Outcome
from isicrt.engine.routes import BlockRoute, Item
from isicrt.engine.run_threads import RunThreads, StageSettings
from isicrt.engine.share_process import SegmentAll, ShareProcess, Unreadable, share_size
from isicrt.engine.sources import Job
from isicrt.engine.task_process import close_all

_CLOSE_SECONDS = 0.1
"""What processes have to end: those of a run that is done have nothing to do, unless they load their network."""


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
        # looked at, jobs that nobody has read, and jobs that no process takes.
        self._processes: list[ShareProcess | None] = [None] * processes
        self._taken: list[deque[Job]] = [deque() for _ in range(processes)]
        self._unread: list[deque[Job]] = [deque() for _ in range(processes)]
        self._own: list[deque[Job]] = [deque() for _ in range(processes)]

    def stop(self) -> None:
        """See `RunThreads.stop`."""
        RunThreads.stop(self)
        processes = [process.process for process in self._processes if process is not None]
        close_all(processes, _CLOSE_SECONDS)

    def _work(self, slot: DecodeSlot) -> None:
        process = self._processes[slot.number]
        unread, own = self._unread[slot.number], self._own[slot.number]
        taken, block = self._taken[slot.number], self._blocks[slot.number]
        while not (self._takes_no_more() and (taken or unread or own)):
            if own or block:  # of a thread that was given up, too
                self._do_own(slot, own, block)
            elif taken:
                self._look_at(slot, taken, unread)
            elif unread:
                process = process or self._start(slot.number)
                if process.is_ready:
                    self._share(process, unread, own)
                else:
                    own.extend(unread)
                    unread.clear()
            elif process is None or process.is_ready:
                taken.extend(self._take())
                if not taken:
                    return
            elif not self._do_block(slot):
                return

    def _start(self, number: int) -> ShareProcess:
        """The process of a thread that has an image to do: where all are done there is none."""
        process = ShareProcess(self._task, number, self._settings.decode_timeout)
        self._processes[number] = process
        if self._is_cut:  # `stop` may not have seen it
            process.close(0)
            raise Stopped
        return process

    def _do_own(self, slot: DecodeSlot, own: deque[Job], block: list[Item]) -> None:
        """Images that no process takes, as many as go through the network together."""
        while own and len(block) < self._block_route.at_once:
            self._check_cut()
            job = own.popleft()
            slot.begin(job)
            ended = self._read(job)
            slot.end()
            if isinstance(ended, Outcome):
                self._end((ended, None))
            else:
                block.append(ended)
        if block:
            self._segment(block)
            block.clear()

    def _do_block(self, slot: DecodeSlot) -> bool:
        """One block in this process. False where no job is left."""
        block = self._blocks[slot.number]
        self._gather(slot, block)
        if not block:
            return False
        self._segment(block)
        block.clear()
        return True

    def _take(self) -> list[Job]:
        """Jobs for one share."""
        jobs = self._next_jobs(share_size(self._left, len(self._processes), self._block_route.at_once))
        if self._left is not None:
            self._left -= len(jobs)
        return jobs

    def _look_at(self, slot: DecodeSlot, taken: deque[Job], unread: deque[Job]) -> None:
        """Those that have ended already are told of."""
        while taken:
            job = taken.popleft()
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
                read.append((place, Item(job, found.native_size, None, found.stamp, found.note)))
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
