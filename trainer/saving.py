"""When an epoch is saved: always where that is quick beside the training, else now and then.

A checkpoint of the report's widths has gigabytes, and an epoch on a GPU takes a second. So what was saved last decides:
a save that took s seconds is followed by none for `PATIENCE` times s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from isicrt.engine.card import ModelCard

PATIENCE = 20.0
"""Times what a save takes, from one to the next: saving then takes at most a twentieth of the time."""


class Intervals:
    """Says when something that takes long is due again. The first time it is due at once.

    Args:
        clock: seconds; monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due = float("-inf")

    @property
    def due(self) -> bool:
        """Whether it may be done now."""
        return self._clock() >= self._due

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Around what is done; what fails is due again at once."""
        begun = self._clock()
        yield
        ended = self._clock()
        self._due = ended + PATIENCE * (ended - begun)


@dataclass(frozen=True)
class Best:
    """A best epoch that is not saved yet."""

    card: ModelCard
    weights: Mapping[str, Tensor]
    epoch: int

    def kept(self) -> Best:
        """With weights of its own, which the next step does not change."""
        return Best(self.card, {name: value.detach().clone() for name, value in self.weights.items()}, self.epoch)
