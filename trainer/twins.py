"""Training images that show one lesion twice: with a test image, or with each other.

Found by matching local features of all images of ISIC 2016 and ISIC 2018 that the project has and by looking at every
pair (lead's first list; see docs/data.md).
"""

from __future__ import annotations

TEST_TWINS = {
    "ISIC_0001184": "duplicate of a test image",
    "ISIC_0001385": "duplicate of a test image",
    "ISIC_0011082": "ISIC_0000449",
    "ISIC_0000396": "ISIC_0009880",
    "ISIC_0009896": "ISIC_0000433",
    "ISIC_0009910": "ISIC_0000420",
    "ISIC_0010358": "ISIC_0001128",
    "ISIC_0010475": "ISIC_0000392",
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
    ("ISIC_0000215", "ISIC_0015313"),
    ("ISIC_0000217", "ISIC_0014973"),
    ("ISIC_0000218", "ISIC_0015241"),
    ("ISIC_0000220", "ISIC_0015202"),
    ("ISIC_0000221", "ISIC_0015139"),
    ("ISIC_0000223", "ISIC_0014818"),
    ("ISIC_0000224", "ISIC_0014791"),
    ("ISIC_0000225", "ISIC_0014778"),
    ("ISIC_0000229", "ISIC_0014771"),
    ("ISIC_0000519", "ISIC_0011295"),
    ("ISIC_0015945", "ISIC_0015946"),
)
"""Training images that show one lesion. A cross-validation fold keeps them together."""

_GROUP = {name: group[0] for group in TWINS for name in group}


def group_of(name: str) -> str:
    """The first image of the group that an image belongs to; itself where it is alone."""
    return _GROUP.get(name, name)
