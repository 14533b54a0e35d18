"""ISIC 2016 Task 1 on disk: pairs of image and mask, found by ISIC id and checked before anything is learned.

Three layouts are understood, see `find_pairs`. Pairing never depends on the order in which a folder is listed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import re
from collections.abc import Collection, Container, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from isicrt.engine.errors import DataError
from isicrt.engine.scores import FOREGROUND_ABOVE
from isicrt.trainer.data_hash import Alias, Hashed, aliases_of, sha256_of
from isicrt.trainer.data_notes import count_of, say_left_out
from isicrt.trainer.groups import Groups, join_groups, read_groups
from isicrt.trainer.official_ids import TEST_IDS
from isicrt.trainer.pair_check import check_pair
from isicrt.trainer.second_files import SecondFile, say_second_files
from isicrt.trainer.twins import TEST_TWINS, group_of, image_id, raw_id

SPLITS = ("train", "test")
OFFICIAL_FOLDERS = {
    "train": ("ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part1_Training_GroundTruth"),
    "test": ("ISBI2016_ISIC_Part1_Test_Data", "ISBI2016_ISIC_Part1_Test_GroundTruth"),
}
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp"})
"""Those of `isicrt segment`; DALI reads them too."""
_PREVIEWS = frozenset({".jpe", ".jfif", ".webp"})
"""Of these a file may be a smaller copy of an image that lies beside it, which counts."""

LEFT_OUT = dict.fromkeys(sorted(TEST_IDS), "is a test image") | {
    name: f"shows the lesion of test image {test}" for name, test in TEST_TWINS.items()
}
"""Images that would leak the test set of ISIC 2016 into training, with the reason."""

_SUPERPIXELS = "_superpixels.png"
_HIDDEN = (".", "@", "__MACOSX")
"""So begin names of folders that caches, viewers, disk stations and macOS leave beside images."""
_WRITTEN = (".isicrt-journal.jsonl", ".isicrt-overlays")
"""A folder that holds one of these is isicrt's own, which may lie among images; see `isicrt.engine.image_search`."""
_OTHER_ENDINGS = re.compile(r"_(lesion|mask|seg|gt)$", re.IGNORECASE)
"""Of masks in data sets of others, such as PH2. Photographs may end so too, hence only where nothing else fits."""


class NoSuchHalfError(DataError):
    """A data set that has the other half alone."""


@dataclass(frozen=True)
class Pair:
    """An image and its mask."""

    id: str
    image: Path
    mask: Path
    group: str | None = None
    """What of its data set's `groups.csv` stays in one fold with it; None without, see `isicrt.trainer.twins` then."""


@dataclass
class _Scan:
    """What one data set is found to be."""

    pairs: list[Pair]
    problems: list[str]
    """What does not pair up; those of the groups are theirs."""
    left_out: list[Pair]
    groups: Groups


@dataclass(frozen=True)
class DatasetReport:
    """What `check_pairs` found."""

    pairs: int
    grey_masks: int
    """Masks with values other than 0 and 255; training reads them as lesion above 128, as the official scorer does.
    Those of which nothing is above it are problems."""
    problems: list[str]
    """One line for each, with the file and what to do."""
    sha256: str
    """Of ids, file contents and groups, in order of id: the same data gives the same hash wherever it lies."""
    without_lesion: tuple[Path, ...] = ()
    """Masks that are 0 throughout, which is legal and rare."""
    left_out: int = 0
    """Further pairs that are there and are not among these, see `LEFT_OUT`."""
    corners: int = 0
    """Masks that are lesion in all four corners, see `isicrt.trainer.data_notes`."""
    damaged: tuple[Path, ...] = ()
    """JPEGs that can be decoded and look damaged all the same, such as one that was cut in half."""
    turned: tuple[Path, ...] = ()
    """Images whose EXIF orientation turns them in viewers; here the stored grid counts."""
    copies: tuple[tuple[Path, Path], ...] = ()
    """Images that are, byte by byte, the one that stands behind them, and that no group keeps in its fold."""
    contents: Mapping[Path, bytes] = field(default_factory=dict)
    """SHA-256 of the images' files, as far as they could be read."""
    groups: tuple[str, ...] = ()
    """On each `groups.csv`, for people."""
    also_known_as: tuple[Alias, ...] = ()
    """Further hashes of the same data."""


def find_pairs(root: Path | str, split: str = "train", leave_out: Set[str] = LEFT_OUT.keys()) -> list[Pair]:
    """Find the pairs of a data set, sorted by id. A `groups.csv` that `survey` has a problem with counts for nothing:
    whoever scores has no folds.

    Args:
        root: a folder with ``images/`` and ``masks/``; or one with ``train/`` and ``test/`` that hold those; or one
            with the four official folders ``ISBI2016_ISIC_Part1_*``.
        split: ``train`` or ``test``.
        leave_out: ids that are not to be among those of ``train``.

    Raises:
        DataError: no such layout, or more than one, or images and masks that do not pair up; every problem is listed.
    """
    scan = _scan(Path(root), split, leave_out)
    if scan.problems:
        raise DataError(_listed(f"{root}: cannot pair images and masks", scan.problems))
    return _grouped(scan.pairs, () if scan.groups.problems else scan.groups.group.items())


def count_left_out(root: Path | str, split: str = "train", leave_out: Set[str] = LEFT_OUT.keys()) -> int:
    """How many pairs are there that `find_pairs` leaves out. Raises DataError: no such layout."""
    return len(_scan(Path(root), split, leave_out).left_out)


def _scan(root: Path, split: str, leave_out: Set[str] = LEFT_OUT.keys()) -> _Scan:
    images, masks = find_folders(root, split)
    problems: list[str] = []
    by_id = {"image": _index(images, "image", problems)}
    by_id["mask"] = _index(masks, "mask", problems, of=by_id["image"])
    for name in sorted(by_id["image"].keys() - by_id["mask"].keys()):
        problems.append(f"{by_id['image'][name]}: has no mask in {masks}")
    for name in sorted(by_id["mask"].keys() - by_id["image"].keys()):
        problems.append(f"{by_id['mask'][name]}: has no image in {images}")
    if not by_id["image"]:
        problems.append(f"{images}: holds no image")
    paired = by_id["image"].keys() & by_id["mask"].keys()
    pairs = [Pair(name, by_id["image"][name], by_id["mask"][name]) for name in sorted(paired)]
    left_out = paired & leave_out if split == "train" else set()
    groups = read_groups((root, images.parent), by_id["image"].keys(), _ids_of_other_half(root, split))
    return _Scan(
        [pair for pair in pairs if pair.id not in left_out],
        problems,
        [pair for pair in pairs if pair.id in left_out],
        groups,
    )


def _ids_of_other_half(root: Path, split: str) -> set[str]:
    with suppress(DataError, OSError):  # whoever uses this half may lack the other
        images, _ = find_folders(root, next(other for other in SPLITS if other != split))
        return {image_id(path.stem) for path in images.iterdir() if is_image_name(path.name)}
    return set()


def _grouped(pairs: Sequence[Pair], groups: Collection[tuple[str, str]]) -> list[Pair]:
    joined = join_groups(groups) if groups else {}
    return [dataclasses.replace(pair, group=joined.get(pair.id)) for pair in pairs]


def find_folders(root: Path, split: str) -> tuple[Path, Path]:
    """The folder of images and that of masks, see `find_pairs`. Raises DataError where there is no such layout, or more
    than one; NoSuchHalfError, which is one, where there is the other half alone."""
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r}: choose from {', '.join(SPLITS)}")
    flat = (root / "images", root / "masks")
    divided = {
        name: [(root / name / "images", root / name / "masks"), (root / official[0], root / official[1])]
        for name, official in OFFICIAL_FOLDERS.items()
    }
    # Beside folders of either split, images/ may hold those of the test.
    candidates = [flat, *divided["train"], *divided["test"]] if _are_there(flat) else divided[split]
    found = [folders for folders in candidates if _are_there(folders)]
    if len({(images.resolve(), masks.resolve()) for images, masks in found}) > 1:
        names = "; ".join(" and ".join(f"{folder.relative_to(root)}/" for folder in folders) for folders in found)
        raise DataError(
            f"{root}: holds more than one data set: {names}. Which one is meant cannot be told, and to mix them up may "
            "be to learn the test: leave one layout there and move the other out"
        )
    if found:
        return found[0]
    expected = f"{split}/images/ and {split}/masks/, or the official {' and '.join(OFFICIAL_FOLDERS[split])}"
    others: set[str] = set()
    with suppress(OSError):  # there may be no such folder
        others = {path.name for path in root.iterdir()}
    # Into a folder of other data nothing is to be downloaded.
    get = "" if any(map(_is_not_of_isic_2016, others)) else f". Get it with: isicrt data isic2016 --out {root}"
    half = next(other for other in SPLITS if other != split)
    if any(map(_are_there, divided[half])) and not others & {split, *OFFICIAL_FOLDERS[split]}:
        raise NoSuchHalfError(f"{root}: has no {split} half, only {half}. It would be {expected}{get}")
    raise DataError(f"{root}: not a data set. Expected images/ and masks/ in it, or {expected}{get}")


def _is_not_of_isic_2016(name: str) -> bool:
    """Neither one of the official folders, or their archives as far as they are fetched, nor hidden."""
    return not name.startswith((".", "ISBI2016_ISIC_"))


def _are_there(folders: tuple[Path, Path]) -> bool:
    return folders[0].is_dir() and folders[1].is_dir()


def _index(folder: Path, kind: str, problems: list[str], of: Container[str] = ()) -> dict[str, Path]:
    """Files of a folder by id, masks by those `of` the images; two files of one id are a problem."""
    found: dict[str, Path] = {}
    second: list[SecondFile] = []
    for path in sorted(folder.iterdir()):
        if not is_image_name(path.name):
            if _holds_images(path):
                problems.append(f"{path}: holds images and is not read: move its files up, or elsewhere")
            continue
        name = image_id(path.stem)
        if name not in of and (bare := _OTHER_ENDINGS.sub("", name)) in of:
            name = bare
        preview = path.suffix.lower() in _PREVIEWS
        if name in found and preview != (found[name].suffix.lower() in _PREVIEWS):
            found[name] = found[name] if preview else path
        elif name in found:
            second.append((name, path, found[name]))
        else:
            found[name] = path
    problems += say_second_files(folder, kind, second)
    return found


def is_image_name(name: str) -> bool:
    """Whether a file of a data set is an image or a mask, by its name. The superpixels that lie beside the photographs
    of ISIC 2017 and 2018 are neither."""
    lower = name.lower()
    return Path(lower).suffix in IMAGE_SUFFIXES and not lower.startswith(".") and not lower.endswith(_SUPERPIXELS)


def _is_passed_over(folder: Path) -> bool:
    return folder.name.startswith(_HIDDEN) or any((folder / name).is_file() for name in _WRITTEN)


def _holds_images(folder: Path) -> bool:
    """Whether images lie in a subfolder, at any depth; some do not count, see `_is_passed_over`."""
    if _is_passed_over(folder):
        return False
    for at, below, files in os.walk(folder):
        below[:] = [name for name in below if not _is_passed_over(Path(at) / name)]
        if any(map(is_image_name, files)):
            return True
    return False


def check_pairs(pairs: Sequence[Pair], left_out: Sequence[Pair] = ()) -> DatasetReport:
    """Decode every image and mask, compare their sizes, and hash them. Problems are reported, not raised.

    Args:
        pairs: sorted by id.
        left_out: further pairs, from which isicrt learned once: for `DatasetReport.also_known_as` alone.
    """
    every = [*pairs, *left_out]
    # Decoding releases the GIL.
    with ThreadPoolExecutor() as threads:
        found = list(threads.map(check_pair, [pair.image for pair in every], [pair.mask for pair in every]))
    hashed = [
        Hashed(pair.id, b"".join(check.hashes), pair.group, raw_id(pair.image.stem))
        for pair, check in zip(every, found, strict=True)
    ]
    found, hashed, then = found[: len(pairs)], hashed[: len(pairs)], hashed[len(pairs) :]
    checked = list(zip(pairs, found, strict=True))
    first: dict[bytes, Pair] = {}
    copies = []
    for pair, check in checked:
        original = first.setdefault(check.hashes[0], pair) if check.hashes else pair
        if _kept_with(pair) != _kept_with(original):
            copies.append((pair.image, original.image))
    return DatasetReport(
        len(pairs),
        sum(bool(check.levels - {0, 255}) and max(check.levels) > FOREGROUND_ABOVE for check in found),
        [problem for check in found for problem in check.problems],
        sha256_of(hashed),
        without_lesion=tuple(pair.mask for pair, check in checked if check.levels == {0}),
        corners=sum(check.corners for check in found),
        damaged=tuple(pair.image for pair, check in checked if check.damaged and not check.problems),
        turned=tuple(pair.image for pair, check in checked if check.orientation),
        copies=tuple(copies),
        contents={pair.image: check.hashes[0] for pair, check in checked if check.hashes},
        also_known_as=aliases_of(hashed, then),
    )


def survey(roots: Sequence[Path | str], split: str = "train") -> tuple[list[Pair], DatasetReport]:
    """`find_pairs` in one or several data sets and `check_pairs` of all of them; the report has the problems of both.

    Raises:
        DataError: a root is no data set at all.
    """
    scans = [_scan(Path(root), split) for root in roots]
    groups = [entry for scan in scans for entry in scan.groups.group.items()]
    pairs = _grouped(sorted((pair for scan in scans for pair in scan.pairs), key=lambda pair: pair.id), groups)
    unpaired = [problem for scan in scans for problem in (*scan.problems, *scan.groups.problems)]
    twice = [f"{b.image}: {b.id} is also {a.image}" for a, b in itertools.pairwise(pairs) if a.id == b.id]
    left_out = [pair for scan in scans for pair in scan.left_out]
    # They are read for the hashes that a training has; where none is left there is none.
    before = [pair for pair in left_out if pair.id not in TEST_TWINS] if pairs else []
    report = check_pairs(pairs, before)
    return pairs, dataclasses.replace(
        report,
        problems=[*unpaired, *twice, *report.problems],
        left_out=len(left_out),
        groups=tuple(note for scan in scans for note in scan.groups.notes),
    )


def checked_pairs(roots: Sequence[Path | str], split: str = "train") -> tuple[list[Pair], DatasetReport]:
    """`survey`, for use.

    Raises:
        DataError: anything is wrong; every problem is listed.
    """
    pairs, report = survey(roots, split)
    names = ", ".join(str(root) for root in roots)
    if report.problems:
        raise DataError(_listed(f"{names}: {count_of(len(report.problems), 'problem')}", report.problems))
    if not pairs:
        raise DataError(f"{names}: no pair to use. {say_left_out(report.left_out, 0)}")
    return pairs, report


def split_fold(pairs: Sequence[Pair], folds: int, fold: int) -> tuple[list[Pair], list[Pair]]:
    """Training and validation pairs of one cross-validation fold.

    A pair's fold depends on the hash of its id alone, so it is the same on every machine and when images are missing;
    images of one lesion (`isicrt.trainer.twins`) share the fold of the first of them, and those of a group
    (`isicrt.trainer.groups`) the fold of its name.

    Raises:
        DataError: `fold` is out of range, or a side is empty.
    """
    if not 0 <= fold < folds:
        raise DataError(f"fold {fold} does not exist: there are {folds}, numbered from 0")
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        sides[_bucket(_kept_with(pair), folds) == fold].append(pair)
    if not all(sides):
        raise DataError(_say_empty(pairs, folds, fold))
    return sides


def _say_empty(pairs: Sequence[Pair], folds: int, fold: int) -> str:
    """Of a fold with an empty side, and what to do."""
    be = "is" if len(pairs) == 1 else "are"
    filled = sorted({_bucket(_kept_with(pair), folds) for pair in pairs})
    other = f"Take another fold, such as --fold {filled[0]}, have" if len(filled) > 1 else "Have"
    return (
        f"{_count(pairs, 'pair')} {be} too few for fold {fold} of {folds}: one side would be empty. {other} fewer "
        "folds, or learn from every pair, without validation: isicrt train --fold none"
    )


def hold_out(pairs: Sequence[Pair], part: int, parts: int) -> tuple[list[Pair], list[Pair]]:
    """The pairs of all parts but one, and those of that part.

    As in `split_fold`, images of one lesion or group stay together and a pair's part depends on its id, or its group's
    name, alone; it does not depend on the pair's fold, so that the training pairs of a fold are shared out evenly.

    Raises:
        DataError: there is no such part, or a side is empty.
    """
    if not 0 <= part < parts:
        raise DataError(f"part {part} does not exist: there are {parts}, numbered from 0")
    sides: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        sides[_bucket(f"sub{_kept_with(pair)}", parts) == part].append(pair)
    if not all(sides):
        raise DataError(f"{_count(pairs, 'training pair')} cannot be shared out in {parts} parts: one would be empty")
    return sides


def _count(pairs: Sequence[Pair], kind: str) -> str:
    together, count = {_kept_with(pair) for pair in pairs}, count_of(len(pairs), kind)
    return count if len(together) == len(pairs) else f"{count} in {count_of(len(together), 'group')}"


def _kept_with(pair: Pair) -> str:
    return pair.group or group_of(pair.id)


def _bucket(text: str, count: int) -> int:
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogateescape")).digest()[:8], "big") % count


def _listed(title: str, problems: Sequence[str]) -> str:
    return "\n  ".join([f"{title}:", *problems])
