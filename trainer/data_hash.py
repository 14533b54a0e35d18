"""What data are known by: a hash; and the hashes that the same data have without their groups, or had before."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_TEST_IMAGES = "test images of ISIC 2016 among them, which isicrt leaves out since version 0.2"
_ACCENTS = "accents that isicrt since version 0.2 writes in one character in ids"
_NO_GROUPS = "no groups.csv"


@dataclass(frozen=True)
class Hashed:
    """A pair, as far as the hash goes."""

    id: str
    contents: bytes
    """Hashes of image and mask."""
    group: str | None = None
    raw_id: str = ""
    """Its id before isicrt 0.2, see `isicrt.trainer.twins.raw_id`."""


@dataclass(frozen=True)
class Alias:
    """Another hash of the same data."""

    sha256: str
    because: str
    """What is other, for people: with what the data would have this hash."""
    same_folds: bool
    """Whether an image of both is in the same fold of both."""
    earlier: bool
    """Whether only an isicrt before 0.2 gives it."""


def sha256_of(pairs: Iterable[Hashed]) -> str:
    """Of ids, contents and groups, in the order given."""
    digest = hashlib.sha256()
    for pair in pairs:
        group = b"" if pair.group is None else b"\0group " + pair.group.encode()
        # A file's name may be no UTF-8.
        digest.update(pair.id.encode(errors="surrogateescape") + pair.contents + group)
    return digest.hexdigest()


def aliases_of(pairs: Sequence[Hashed], left_out: Sequence[Hashed]) -> tuple[Alias, ...]:
    """The other hashes of pairs that training takes, of which an isicrt before 0.2 took those `left_out` too. It knew
    no groups."""
    grouped = any(pair.group is not None for pair in pairs)
    own = sha256_of(pairs)
    known: dict[str, Alias] = {}
    for learned, because in ((pairs, ()), ([*pairs, *left_out], (_TEST_IMAGES,) if left_out else ())):
        for raw in (False, any(pair.raw_id != pair.id for pair in learned)):
            before = [*because, *([_ACCENTS] if raw else [])]
            named = sorted((pair.raw_id if raw else pair.id, pair.contents) for pair in learned)
            alias = Alias(
                sha256_of(Hashed(*each) for each in named),
                " and ".join([*before, *([_NO_GROUPS] if grouped else [])]),
                same_folds=not grouped and not raw,
                earlier=bool(before),
            )
            if alias.sha256 != own:
                known.setdefault(alias.sha256, alias)
    return tuple(known.values())
