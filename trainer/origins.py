"""What a model's card says of its training, with what that went on from. Needs no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def trainings(training: object) -> Iterator[Mapping[str, Any]]:
    """A training and what it started from; in place of a mean its members, where the card has them whole."""
    if isinstance(training, Mapping):
        members = training["mean_of"] if isinstance(training.get("mean_of"), list) else []
        known = [member for member in members if isinstance(member, Mapping) and "data_sha256" in member]
        if not known:
            yield training
        for other in (*known, training.get("start_from")):
            yield from trainings(other)
