"""The losses of an epoch's steps, read without holding up a GPU: each when the next step is under way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class LateLosses:
    """Gives back the loss of a step as a number: at once on a CPU, and on a GPU one step later.

    To read a number from a GPU waits for all that the GPU was asked to do before. Here the loss is copied in the order
    of the work, behind its own step, and read when the step after it has been asked for: then the GPU always has a step
    to do. Whoever saves a checkpoint calls `rest` first, so that no loss of the epoch is unread.
    """

    def __init__(self) -> None:
        self._waiting: tuple[Tensor, int, Any] | None = None

    def read(self, loss: Tensor, images: int) -> list[tuple[float, int]]:
        """Hand in the loss of a step, a scalar, and its number of images.

        Returns:
            Losses that are known by now and were not given back before, with their numbers of images.
        """
        if not loss.is_cuda:
            return [(float(loss.detach()), images)]
        # Into pinned memory, which torch takes for a copy that does not block.
        value = loss.detach().to("cpu", non_blocking=True)
        make_event: Any = torch.cuda.Event
        event = make_event()
        event.record()
        before, self._waiting = self._known(), (value, images, event)
        return before

    def rest(self) -> list[tuple[float, int]]:
        """What has not been given back."""
        found, self._waiting = self._known(), None
        return found

    def _known(self) -> list[tuple[float, int]]:
        if self._waiting is None:
            return []
        value, images, event = self._waiting
        event.synchronize()
        return [(float(value), images)]
