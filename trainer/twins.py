"""Training images that show one lesion twice: with a test image, or with each other.

`isicrt data audit` and its trials proposed the pairs, among 806 images of ISIC 2016's training set, 339 of its test set
and 1,000 more of ISIC 2018; each was looked at, side by side. In each, 8 places of the skin or more lie on each other
with a correlation of at least 0.65 (from 30 on, 0.45). How, and what such a search misses: docs/data.md.
"""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

TEST_TWINS = {
    # Copies, byte by byte, of images of the official test set: list 07 of Cassidy et al., "Analysis of the ISIC image
    # datasets", Medical Image Analysis 2022. It does not say which.
    "ISIC_0001184": "(not recorded which)",
    "ISIC_0001385": "(not recorded which)",
    # Of ISIC 2016's own training set.
    "ISIC_0000240": "ISIC_0009998",
    "ISIC_0000249": "ISIC_0010374",
    "ISIC_0000396": "ISIC_0009880",
    "ISIC_0000410": "ISIC_0009955",
    "ISIC_0000416": "ISIC_0011292",
    "ISIC_0000427": "ISIC_0011333",
    "ISIC_0000443": "ISIC_0010173",
    "ISIC_0000451": "ISIC_0010216",
    "ISIC_0001134": "ISIC_0010016",
    "ISIC_0009896": "ISIC_0000433",
    "ISIC_0009910": "ISIC_0000420",
    "ISIC_0009966": "ISIC_0009956",
    "ISIC_0010358": "ISIC_0001128",
    "ISIC_0010475": "ISIC_0000392",
    "ISIC_0011082": "ISIC_0000449",
    "ISIC_0011358": "ISIC_0011359",
    "ISIC_0011360": "ISIC_0011363",
    "ISIC_0011362": "ISIC_0011359",
    # Of ISIC 2018.
    "ISIC_0014657": "ISIC_0000177",
    "ISIC_0014667": "ISIC_0000198",
    "ISIC_0014763": "ISIC_0000230",
    "ISIC_0014788": "ISIC_0000165",
    "ISIC_0014795": "ISIC_0000164",
    "ISIC_0014846": "ISIC_0000222",
    "ISIC_0014927": "ISIC_0000212",
    "ISIC_0014949": "ISIC_0000226",
    "ISIC_0014957": "ISIC_0000196",
    "ISIC_0014964": "ISIC_0000228",
    "ISIC_0015023": "ISIC_0000201",
    "ISIC_0015034": "ISIC_0000227",
    "ISIC_0015146": "ISIC_0000231",
    "ISIC_0015201": "ISIC_0000213",
}
"""Training image -> the test image that shows its lesion. Training leaves them out."""

TWINS = (
    ("ISIC_0000162", "ISIC_0014826"),
    ("ISIC_0000171", "ISIC_0015124"),
    ("ISIC_0000173", "ISIC_0015110"),
    ("ISIC_0000179", "ISIC_0014765"),
    ("ISIC_0000183", "ISIC_0015311"),
    ("ISIC_0000184", "ISIC_0015310"),
    ("ISIC_0000189", "ISIC_0015161"),
    ("ISIC_0000191", "ISIC_0014907"),
    ("ISIC_0000193", "ISIC_0015436"),
    ("ISIC_0000205", "ISIC_0014742"),
    ("ISIC_0000206", "ISIC_0014739"),
    ("ISIC_0000214", "ISIC_0014958"),
    ("ISIC_0000215", "ISIC_0015313"),
    ("ISIC_0000217", "ISIC_0014973"),
    ("ISIC_0000218", "ISIC_0015241"),
    ("ISIC_0000220", "ISIC_0015202"),
    ("ISIC_0000221", "ISIC_0015139"),
    ("ISIC_0000223", "ISIC_0014818"),
    ("ISIC_0000224", "ISIC_0014791"),
    ("ISIC_0000225", "ISIC_0014778"),
    ("ISIC_0000229", "ISIC_0014771"),
    ("ISIC_0000268", "ISIC_0011165"),
    ("ISIC_0000397", "ISIC_0010074"),
    ("ISIC_0000419", "ISIC_0010465"),
    ("ISIC_0000423", "ISIC_0010571"),
    ("ISIC_0000425", "ISIC_0009961"),
    ("ISIC_0000436", "ISIC_0010573"),
    ("ISIC_0000439", "ISIC_0010853"),
    ("ISIC_0000444", "ISIC_0011166"),
    ("ISIC_0000453", "ISIC_0011097"),
    ("ISIC_0000519", "ISIC_0011295"),
    ("ISIC_0001105", "ISIC_0009950"),
    ("ISIC_0009883", "ISIC_0009884"),
    ("ISIC_0009979", "ISIC_0009981"),
    ("ISIC_0012685", "ISIC_0013032"),
    ("ISIC_0012877", "ISIC_0012878"),
    ("ISIC_0012903", "ISIC_0012904"),
    ("ISIC_0013072", "ISIC_0013073"),
    ("ISIC_0013086", "ISIC_0013087"),
    ("ISIC_0013274", "ISIC_0013432"),  # likely, not certain: another visit
    ("ISIC_0013498", "ISIC_0014178"),
    ("ISIC_0013626", "ISIC_0014077"),
    ("ISIC_0013874", "ISIC_0014289"),
    ("ISIC_0014480", "ISIC_0014507"),
    ("ISIC_0015945", "ISIC_0015946"),
    ("ISIC_0015985", "ISIC_0015997"),
    ("ISIC_0016059", "ISIC_0016063"),  # likely, not certain
    ("ISIC_0016066", "ISIC_0016072"),
)
"""Training images that show one lesion. A cross-validation fold keeps them together."""

_ISIC_ID = re.compile(r"ISIC_\d{7}(?!\d)", re.IGNORECASE | re.ASCII)
_MASK_ENDING = re.compile(r"_segmentation$", re.IGNORECASE)
_GROUP = {name: group[0] for group in TWINS for name in group}


def group_of(name: str) -> str:
    """The first image of the group that an image belongs to; itself where it is alone."""
    return _GROUP.get(name, name)


def image_id(stem: str) -> str:
    """The id of an image or a mask by its file's name without the extension: the ISIC id, or what is its own in it."""
    # macOS and what is unpacked there may write an accent as a character of its own.
    return _isic_id(stem) or _MASK_ENDING.sub("", unicodedata.normalize("NFC", stem))


def raw_id(stem: str) -> str:
    """What `image_id` was before isicrt 0.2, of an image: accents as the file's name has them."""
    return _isic_id(stem) or _MASK_ENDING.sub("", stem)


def isic_id(path: Path) -> str | None:
    """The ISIC id in a file's name, in capitals. None without one: a longer number is something else."""
    return _isic_id(path.stem)


def _isic_id(stem: str) -> str | None:
    match = _ISIC_ID.search(stem)
    return match.group().upper() if match else None
