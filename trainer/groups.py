"""Images that belong together, by a data set's own `groups.csv`: of one patient, or of one lesion."""

from __future__ import annotations

import csv
from collections.abc import Container, Iterable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from isicrt.trainer.data_notes import count_of
from isicrt.trainer.twins import TWINS, image_id

FILE = "groups.csv"
"""Beside ``images/`` and ``masks/``, or in the folder that holds the splits."""
_BY_HAND = ["image", "group"]
"""First line of a file of which each line has both. Others are metadata, with gaps and further columns."""
_IMAGE_COLUMNS = ("image", "image_id", "image_name", "isic_id")
_GROUP_COLUMNS = {"group": "", "patient_id": "patient_id ", "lesion_id": "the lesion_id "}
"""Column -> what stands before its values in names of groups: patient 1 is not lesion 1. Groups that are joined have
the first of their names, so that a patient's comes before those of the lesions."""
_AND = "\0"
"""Between the names of groups that one image is in."""


@dataclass
class Groups:
    """What a data set says of its images."""

    group: dict[str, str] = field(default_factory=dict)
    """Id of an image -> name of its group, for `join_groups`; also for images that are not there. By several columns of
    metadata it may be in several, with `_AND` between them."""
    problems: list[str] = field(default_factory=list)
    """One line for each, with the file and what to do."""
    notes: list[str] = field(default_factory=list)
    """For people: how many images and groups there are, and what is named and is not there."""


def read_groups(folders: Iterable[Path], ids: Set[str], elsewhere: Set[str] = frozenset()) -> Groups:
    """Read the `FILE` that lies in one of the folders; no groups without one.

    Args:
        folders: where it may lie.
        ids: of the images that are there.
        elsewhere: those of the data set's other half, which the file may name too.
    """
    found = Groups()
    files = [file for folder in dict.fromkeys(folders) if (file := folder / FILE).is_file()]
    if len(files) > 1:
        found.problems.append(f"{files[1]}: {files[0]} is there too; remove one")
    elif files:
        try:
            _read(files[0], ids, elsewhere, found)
        except OSError as error:
            found.problems.append(f"{files[0]}: cannot be read: {error.strerror}")
        except UnicodeDecodeError:
            found.problems.append(f"{files[0]}: is not UTF-8; save it as CSV in UTF-8")
        except csv.Error as error:
            found.problems.append(f"{files[0]}: is no CSV: {error}")
    return found


def _read(file: Path, ids: Set[str], elsewhere: Set[str], found: Groups) -> None:
    there = ids | elsewhere
    with file.open(encoding="utf-8-sig", newline="") as lines:
        rows = csv.reader(lines)
        header = [cell.strip() for cell in next(rows, [])]
        images = [at for at, column in enumerate(header) if column.lower() in _IMAGE_COLUMNS]
        columns = {at: column.lower() for at, column in enumerate(header) if column.lower() in _GROUP_COLUMNS}
        if len(images) != 1 or not columns:
            found.problems.append(
                f"{file}: its first line is {','.join(header)!r}, and has to have exactly one of "
                f"{', '.join(_IMAGE_COLUMNS)}, and at least one of {', '.join(_GROUP_COLUMNS)}"
                + ("; save it with commas instead of semicolons" if ";" in "".join(header) else "")
            )
            return
        by_hand = header == _BY_HAND
        values: dict[str, dict[str, str]] = {}
        for row in rows:
            cells = [cell.strip() for cell in row]
            if not any(cells):
                continue
            if len(cells) != len(header) or not cells[images[0]] or (by_hand and not all(cells)):
                has_to = "be an image, a comma and its group" if by_hand else f"have {len(header)} cells and an image"
                found.problems.append(f"{file}: line {rows.line_num} has to {has_to}")
                return
            name = id_of(cells[images[0]], there)
            own = values.setdefault(name, {})
            for at, column in columns.items():
                if cells[at] and own.setdefault(column, cells[at]) != cells[at]:
                    found.problems.append(
                        f"{file}: line {rows.line_num}: {name} is in {column} {own[column]} already, and here in "
                        f"{cells[at]}; an image has one"
                    )
                    return
            if own:
                found.group[name] = _AND.join(_GROUP_COLUMNS[column] + value for column, value in own.items())
    known = [name for name in found.group if name in ids]
    joined = join_groups(found.group.items(), twins=())
    count = len({joined[name] for name in known})
    are = "1 image is" if len(known) == 1 else f"{len(known)} images are"
    each = "which" if count == 1 else "each of which"
    found.notes.append(f"{file}: {are} in {count_of(count, 'group')}, {each} stays in one fold")
    if unknown := [name for name in found.group if name not in there]:
        named, are = count_of(len(unknown), "image"), "is" if len(unknown) == 1 else "are"
        found.notes.append(f"{file}: {named} that it names {are} not there, such as {unknown[0]}")


def id_of(cell: str, ids: Container[str]) -> str:
    """The id of an image that a line names by it, or by its file; `ids` are those there are."""
    name = cell.replace("\\", "/").rpartition("/")[2]
    exact, bare = image_id(name), image_id(name.rpartition(".")[0])
    # What follows a dot may be of the id.
    return bare if exact not in ids and bare in ids else exact


def join_groups(groups: Iterable[tuple[str, str]], twins: Iterable[Sequence[str]] = TWINS) -> dict[str, str]:
    """Ids and names of groups (`Groups.group`), with those in one that share an image, or a lesion by the twins, which
    may add images. One of several that are joined has the first of their names."""
    parent: dict[tuple[bool, str], tuple[bool, str]] = {}

    def root(node: tuple[bool, str]) -> tuple[bool, str]:
        while (above := parent.setdefault(node, node)) != node:
            parent[node] = parent[above]
            node = above
        return node

    def join(one: tuple[bool, str], other: tuple[bool, str]) -> None:
        # Names of groups, which are (False, name), are less than images.
        low, high = sorted((root(one), root(other)))
        parent[high] = low

    for image, names in groups:
        for name in names.split(_AND):
            join((False, name), (True, image))
    for images in twins:
        for image in images[1:]:
            join((True, images[0]), (True, image))
    return {node[1]: top[1] for node in list(parent) if node[0] and not (top := root(node))[0]}
