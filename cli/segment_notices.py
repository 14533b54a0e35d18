"""What `isicrt segment` says of masks that are there and want a look: counts, and the first names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isicrt.engine.outcome import Outcome

_NAMED = 3


class Some:
    """Files of one kind: how many, and the first few of them."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[Path] = []

    def add(self, path: Path) -> None:
        self.count += 1
        if self.count <= _NAMED:
            self._first.append(path)

    def names(self) -> str:
        """The first few."""
        return ", ".join(map(str, self._first)) + (", ..." if self.count > _NAMED else "")


class MaskNotices:
    """Of one run, those masks among them that an earlier one made."""

    def __init__(self) -> None:
        self._damaged = Some()

    def add(self, outcome: Outcome) -> None:
        if outcome.note is None or outcome.error is not None:
            return
        from isicrt.engine.jpeg_notes import DAMAGED

        if DAMAGED in outcome.note:
            self._damaged.add(outcome.job.image)

    def counts(self) -> dict[str, int]:
        """For the report."""
        return {"damaged": self._damaged.count}

    def lines(self) -> Iterator[str]:
        """What there is to say."""
        if count := self._damaged.count:
            yield (
                f"{_counted(count, 'image looks', 'images look')} damaged and may have a wrong mask: "
                f"{self._damaged.names()} (the column note of --csv FILE says it of each)"
            )


def _counted(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"
