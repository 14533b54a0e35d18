"""Names by the hundred thousand: kept in few bytes, and compared without a set of them all."""

from __future__ import annotations

import unicodedata
from array import array
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import groupby
from typing import TypeVar

import numpy as np
import numpy.typing as npt

K = TypeVar("K", bound=Hashable)


def name_key(name: str) -> str:
    """Equal for names and paths that some file system takes for one: case and Unicode normal form do not count."""
    return name.lower() if name.isascii() else unicodedata.normalize("NFC", name).casefold()


class PackedNames:
    """Strings end to end: the bytes of each and eight more, where a list of strings takes a hundred.

    They are UTF-8 in which bytes that are no UTF-8 (see `os.fsdecode`) have a place too, so that bytes sort as strings.
    """

    __slots__ = ("_bytes", "_ends")

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._ends = array("Q")

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, n: int) -> str:
        """Number `n`, from 0."""
        start = self._ends[n - 1] if n else 0
        return self._bytes[start : self._ends[n]].decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return (name.decode("utf-8", "surrogatepass") for name in self._encoded())

    def append(self, name: str) -> None:
        """Add a string at the end."""
        self._append(name.encode("utf-8", "surrogatepass"))

    def extend(self, other: PackedNames) -> None:
        """Add the strings of another one at the end."""
        start = len(self._bytes)
        self._bytes += other._bytes
        self._ends.extend(start + end for end in other._ends)

    def sort(self) -> None:
        """Sort by code points, and keep each string once."""
        names = sorted(self._encoded())
        # First of all: the list takes four times as much, and both are not needed.
        self._bytes, self._ends = bytearray(), array("Q")
        for name, _ in groupby(names):
            self._append(name)

    def _append(self, name: bytes) -> None:
        self._bytes += name
        self._ends.append(len(self._bytes))

    def _encoded(self) -> Iterator[bytes]:
        start = 0
        for end in self._ends:
            yield bytes(self._bytes[start:end])
            start = end


def equal_keys(keys: Iterable[K], key_of: Callable[[int], K]) -> list[list[int]]:
    """Which of many keys are equal, in 24 bytes a key where none or few are.

    Args:
        keys: all of them.
        key_of: number `n` of them again.

    Returns:
        For each key that is there more than once its numbers, rising; the groups in the order of their second numbers.
    """
    hashes = _hashes(keys)
    ordered = np.sort(hashes)
    if not (ordered[1:] == ordered[:-1]).any():
        return []
    order = np.argsort(hashes, kind="stable")
    ends = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1, len(order))
    sizes = np.diff(ends, prepend=0)
    groups = []
    for end, size in zip(ends[sizes > 1].tolist(), sizes[sizes > 1].tolist(), strict=True):
        # One hash may stand for several keys.
        numbers: defaultdict[K, list[int]] = defaultdict(list)
        for n in order[end - size : end].tolist():
            numbers[key_of(n)].append(n)
        groups += [group for group in numbers.values() if len(group) > 1]
    return sorted(groups, key=lambda group: group[1])


def shared_keys(keys: Callable[[], Iterable[K]], others: Callable[[], Iterable[K]]) -> list[int]:
    """Numbers of the keys that are among the others, in 32 bytes a key where none or few are.

    Args:
        keys: gives all of them, each time that it is called.
        others: as `keys`.
    """
    hashes = _hashes(keys())
    suspects = set(hashes[KeySet(others()).matches(hashes)].tolist())
    if not suspects:
        return []
    known = {key for key in others() if key_hash(key) in suspects}
    return [n for n, key in enumerate(keys()) if key in known]


class KeySet:
    """What keys are not among some, in eight bytes each; mostly it is right about what keys are, too."""

    def __init__(self, keys: Iterable[Hashable]) -> None:
        self._hashes = _hashes(keys)
        self._hashes.sort()

    def __len__(self) -> int:
        return len(self._hashes)

    def may_hold(self, key: Hashable) -> bool:
        """False: the key is not there; True: it is, or another one that has its hash."""
        number = key_hash(key)
        place = int(self._hashes.searchsorted(np.int64(number)))
        return place < len(self._hashes) and int(self._hashes[place]) == number

    def matches(self, hashes: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """`may_hold` of many keys by their hashes."""
        if not len(self._hashes):
            return np.zeros(len(hashes), bool)
        places = np.minimum(self._hashes.searchsorted(hashes), len(self._hashes) - 1)
        return np.asarray(self._hashes[places] == hashes)


class NumberTable:
    """A dict of 64-bit numbers in 16 bytes each, where a dict takes 170: two arrays, and a small dict of the latest.

    Keys are unsigned, values signed. Once it is `settled`, and not written to any more, any thread may read it.
    """

    def __init__(self) -> None:
        self._keys = np.empty(0, np.uint64)
        self._values = np.empty(0, np.int64)
        self._latest: dict[int, int] = {}

    def __len__(self) -> int:
        self.settle()
        return len(self._keys)

    @property
    def is_empty(self) -> bool:
        """Whether there is no key."""
        return not self._latest and not len(self._keys)

    def __setitem__(self, key: int, value: int) -> None:
        self._latest[key] = value
        # That copies the arrays: the longer they are, the rarer.
        if len(self._latest) >= max(_LATEST, len(self._keys) >> 4):
            self.settle()

    def get(self, key: int) -> int | None:
        """The value of a key."""
        value = self._latest.get(key)
        if value is None and len(self._keys):
            place = int(self._keys.searchsorted(np.uint64(key)))
            if place < len(self._keys) and int(self._keys[place]) == key:
                return int(self._values[place])
        return value

    def settle(self) -> None:
        """Move everything into the arrays."""
        if not self._latest:
            return
        latest = sorted(self._latest.items())
        self._latest = {}
        keys = np.fromiter((key for key, _ in latest), np.uint64, len(latest))
        values = np.fromiter((value for _, value in latest), np.int64, len(latest))
        places = self._keys.searchsorted(keys)
        old = np.zeros(len(keys), bool)
        inside = places < len(self._keys)
        old[inside] = self._keys[places[inside]] == keys[inside]
        self._values[places[old]] = values[old]
        self._keys = np.insert(self._keys, places[~old], keys[~old])
        self._values = np.insert(self._values, places[~old], values[~old])


_LATEST = 1 << 12


def key_hash(key: Hashable) -> int:
    """64 bits for a key, of this process. Equal keys have one; two keys may."""
    return hash(key)


def _hashes(keys: Iterable[Hashable]) -> npt.NDArray[np.int64]:
    return np.fromiter((key_hash(key) for key in keys), np.int64)
