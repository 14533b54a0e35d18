"""A folder of photographs, what people and runs do to it and to its masks, and what docs/reliability.md promises of it.

`World` knows the promises and not how they are kept: it remembers what people did and looks at the files.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from isal import isal_zlib

from isicrt.engine.errors import DataError
from isicrt.engine.masks import encode_png
from isicrt.engine.outcome import Outcome
from isicrt.engine.overlay_label import label_of, read_label
from tests.engine.cut_runs import cut_off
from tests.engine.walk_photographs import DAMAGED, SIZES, Photographs, pixels_of
from tests.journal_lines import read_journal

NAMES = ("a", "x/b", "c")
_OTHER = "is the mask of another image"
_PNG_END = b"IEND\xaeB`\x82"


@dataclass(frozen=True)
class Command:
    """One ``isicrt segment``."""

    bits: int = 1
    overlays: bool = False
    overwrite: bool = False
    retry_failed: bool = False
    only: str | None = None
    """The one photograph that is named; None for the folder."""
    fails: str | None = None
    """The photograph whose mask cannot be written, for a reason of its own."""
    dies_at: int | None = None
    """The change to the disk at which it is cut off, from 0; None where it is left to end."""
    dies_in: bool = False
    """Whether it is cut off within that change, or before."""


class World:
    """Photographs in ``in`` or ``moved``, masks in ``out``, overlays in ``drawn``, in the current folder.

    Args:
        photographs: to choose from.
    """

    def __init__(self, photographs: Photographs) -> None:
        self._segmenter, self._photographs, self._made = photographs.segmenter, photographs.files, photographs.masks
        self._folder = "in"
        self._images.joinpath("x").mkdir(parents=True)
        self._shown: dict[str, int] = {}
        """Which photograph there is under a name; absent where there is none or a link to nowhere."""
        self._drawn: dict[str, bytes] = {}
        """What somebody drew, whose it is being known: it has to be kept."""
        self._open: set[str] = set()
        """Masks of which nobody knows whose they are, since a run was cut off that may have announced them."""
        self._known: dict[str, bool] = {}
        """Names that a run has dealt with; False where one that was cut off may have."""
        self._places: dict[str, str] = {}
        """Where a run last found it."""
        self._of: dict[str, int] = {}
        """Of which photograph the journal's mask is."""
        self._small: set[str] = set()
        """Masks that are of another size than their photograph."""
        self._forgetful = False
        """Whether lines of the journal were lost."""
        self._shares = False
        """Whether overlays may be those of another ``--out``."""
        self._serial = 0

    @property
    def _images(self) -> Path:
        return Path(self._folder)

    # What people do.

    def photograph(self, name: str, which: int) -> None:
        """Put a photograph there, or replace it."""
        self.remove_photograph(name)
        self._image(name).write_bytes(self._photographs[which])
        self._shown[name] = which

    def remove_photograph(self, name: str) -> None:
        self._image(name).unlink(missing_ok=True)
        self._shown.pop(name, None)

    def lose_photograph(self, name: str) -> None:
        """It is there and cannot be read, for a reason that is not its bytes."""
        self.remove_photograph(name)
        self._image(name).symlink_to("nowhere")

    def touch(self, name: str) -> None:
        if name in self._shown:
            self._image(name).touch()

    def exchange(self, name: str, other: str) -> None:
        """Two photographs get each other's name."""
        shown = self._shown.get(name), self._shown.get(other)
        if name != other and None not in shown:
            self._image(name).rename("between")
            self._image(other).rename(self._image(name))
            Path("between").rename(self._image(other))
            self._shown[other], self._shown[name] = shown  # type: ignore[assignment]

    def move(self) -> None:
        """All photographs are moved to another folder, or back."""
        before, self._folder = self._folder, "moved" if self._folder == "in" else "in"
        Path(before).rename(self._folder)

    def remove_journal(self) -> None:
        """Then nobody knows of any mask whose it is, and it is not replaced."""
        Path("out/.isicrt-journal.jsonl").unlink(missing_ok=True)
        self._known, self._open, self._places, self._of, self._forgetful = {}, set(), {}, {}, True

    def cut_journal(self, share: float) -> None:
        """As a power cut may."""
        journal = Path("out/.isicrt-journal.jsonl")
        if journal.exists():
            os.truncate(journal, int(journal.stat().st_size * share))
            self._open |= self._known.keys()
            self._known = dict.fromkeys(self._known, False)
            self._places = dict.fromkeys(self._places, "anywhere")
            self._drawn, self._of, self._forgetful = {}, {}, True

    def draw_small(self, name: str) -> None:
        """Draw a mask in a tool that saves it at another size."""
        self.draw(name, other_size=True)

    def draw(self, name: str, *, other_size: bool = False) -> None:
        """Draw a mask, or correct the one that is there."""
        which = self._shown.get(name, 0)
        mask = np.zeros((33, 44) if other_size else SIZES[which % DAMAGED], bool)
        self._serial += 1
        mask.flat[: self._serial] = True  # no two alike, and none that the model makes
        mask[-1, -1] = True
        (self._small.add if other_size else self._small.discard)(name)
        self._mask(name).parent.mkdir(parents=True, exist_ok=True)
        self._mask(name).write_bytes(encode_png(mask))
        self._drawn[name] = self._mask(name).read_bytes()
        if name in self._open or not self._known.get(name, True):
            del self._drawn[name]

    def remove_mask(self, name: str) -> None:
        self._mask(name).unlink(missing_ok=True)
        self._drawn.pop(name, None)

    def cut_mask(self, name: str) -> None:
        if self._mask(name).is_file():
            os.truncate(self._mask(name), self._mask(name).stat().st_size // 2)
            self._drawn.pop(name, None)

    def remove_overlay(self, name: str) -> None:
        if self._overlay(name).is_dir():
            self._overlay(name).rmdir()
        self._overlay(name).unlink(missing_ok=True)

    def remove_overlays(self) -> None:
        shutil.rmtree("drawn", ignore_errors=True)
        self._shares = False

    def block_overlay(self, name: str) -> None:
        """A folder stands in its place."""
        if Path("drawn/.isicrt-overlays").exists():
            self.remove_overlay(name)
            self._overlay(name).mkdir(parents=True)

    # What runs do.

    def run_elsewhere(self, bits: int) -> None:
        """Run a command with another ``--out`` and the same folder of overlays."""
        if any(os.path.lexists(self._image(n)) for n in NAMES):
            self._segmenter.segment_folder(
                self._folder, "other", overlays="drawn", mask_bits=bits, existing="overwrite", processes=0
            )
            self._shares = True

    def run(self, command: Command) -> None:
        """Run a command, and hold what it did against what is promised."""
        names = [n for n in NAMES if os.path.lexists(self._image(n)) and command.only in (None, n)]
        if not names:
            return
        before, photographs = self._files("out", "drawn"), self._files(self._folder)
        there = [n for n in names if self._mask(n).exists()]
        refuses = [n for n in there if self._may_be_refused(n, before[str(self._mask(n))])]
        ended, error = self._run(command)
        assert self._files(self._folder) == photographs
        if error is not None and command.dies_at is None:
            assert refuses
            assert not command.overwrite
            assert "does not say that isicrt made them" in str(error)
            assert _whole(self._files("out", "drawn")) == _whole(before)
            return
        if error is not None and "does not say that isicrt made them" in str(error):
            assert refuses
            return
        if command.overwrite is False:
            assert not [n for n in there if n not in self._known]
        if error is not None:
            self._after_a_cut(command, names, before)
            return
        assert sorted(ended) == sorted(names)
        end = list(read_journal("out"))[-1]
        failed = sum(o.error is not None for o in ended.values())
        skipped = sum(o.skipped for o in ended.values())
        assert (end["done"], end["failed"], end["skipped"]) == (len(names) - failed - skipped, failed, skipped)
        if command.only is None and not self._forgetful:  # others find what lies where they write
            folders = {f(n).parent for n in names for f in (self._mask, *[self._overlay] * command.overlays)}
            assert not [file for folder in folders for file in folder.glob(".*.tmp")]
        for name in names:
            self._check(command, name, ended[name], before)
        if not command.overwrite:
            files = self._files("out", "drawn", stat=True)
            again, error = self._run(command)
            assert error is None
            assert self._files("out", "drawn", stat=True) == files
            for name, outcome in again.items():
                assert (outcome.skipped, outcome.error is None) in ((True, True), (False, False))
                assert (outcome.error is None) == (ended[name].error is None)
                assert outcome.untried == (outcome.damaged is not None and not command.retry_failed)

    def _may_be_refused(self, name: str, mask: bytes) -> bool:
        """Whether a mask may be one that no run here made of this photograph, for all that is known."""
        known = self._known.get(name)
        if known is None or self._forgetful:
            return True
        # What a run that was cut off left is not in the way of the next.
        return self._places.get(name) != self._folder if known else not self._is_made(mask)

    def _check(self, command: Command, name: str, ended: Outcome, before: dict[str, Any]) -> None:
        was, now = before.get(str(self._mask(name))), self._files("out").get(str(self._mask(name)))
        which, error = self._shown.get(name), ended.error or ""
        moved = self._places.get(name, self._folder) != self._folder
        blocked = command.overlays and self._overlay(name).is_dir()
        if name in self._drawn and not command.overwrite:
            assert now == was == self._drawn[name]
            right_size = name not in self._small or self._of.get(name) != which or which is None or moved
            cut = not now.endswith(_PNG_END) and "no whole image" in error
            assert ended.kept if not error else which is None or "pixels" in error or cut or (moved and _OTHER in error)
            assert right_size or "pixels" in error
        elif which is None:
            assert "No such file" in error
            assert now == was
        elif _OTHER in error:
            assert moved
            assert was is not None
            assert now == was
        elif "Permission denied" in error:
            assert command.fails == name
            assert now == was
        elif which == DAMAGED:
            assert error or ended.kept
            if was is None or (self._known.get(name) and self._is_made(was) and not self._forgetful):
                assert now is None
        elif ended.kept or (error and not blocked) or "pixels" in error:  # somebody's, or nobody knows whose
            assert was == now
            assert was is not None
            assert self._forgetful or not self._is_made(was)
        else:
            assert not error or "the overlay cannot be written" in error or "no whole image" in error
            assert bool(error) == blocked
        if which not in (None, DAMAGED) and not error and not ended.kept:
            assert now is not None
            assert pixels_of(now) == self._made[which, command.bits]
            assert was is None or command.overwrite or not moved or self._of.get(name, which) == which
            if command.overlays:
                crcs = isal_zlib.crc32(self._photographs[which]), isal_zlib.crc32(now)
                assert read_label(self._overlay(name)) == label_of(*crcs)
        elif command.overlays and not (blocked or self._forgetful or self._shares) and (ended.kept or ended.damaged):
            assert not self._overlay(name).exists()
        self._remember(name, ended, was, now)

    def _remember(self, name: str, ended: Outcome, was: bytes | None, now: bytes | None) -> None:
        which = self._shown.get(name)
        foreign = name not in self._known and ended.error is not None and now == was
        if now is None or now != self._drawn.get(name):
            self._drawn.pop(name, None)
        if now is not None and (ended.kept or foreign):
            self._drawn[name] = now
        self._known[name] = True
        if ended.error is None or which == DAMAGED:  # where its mask cannot be written, it is that of before still
            self._places[name] = self._folder
        if ended.error is None or which == DAMAGED:
            self._open.discard(name)
        if now is None:
            self._of.pop(name, None)
        elif ended.error is None and not ended.kept and which is not None:
            self._of[name] = which

    def _after_a_cut(self, command: Command, names: list[str], before: dict[str, Any]) -> None:
        files = self._files("out")
        for name in names:
            was, now = before.get(str(self._mask(name))), files.get(str(self._mask(name)))
            if name in self._drawn and not command.overwrite:
                assert now == was
                continue
            if now != was and now is not None:
                assert pixels_of(now) == self._made[self._shown[name], command.bits]
            self._open.add(name)
            self._of.pop(name, None)
            self._places[name] = "anywhere"
            self._known.setdefault(name, False)
            self._drawn.pop(name, None)

    def _run(self, command: Command) -> tuple[dict[str, Outcome], Exception | None]:
        ended: dict[str, Outcome] = {}
        images = self._folder if command.only is None else [str(self._image(command.only))]
        refused = None if command.fails is None else self._mask(command.fails)
        with cut_off(command.dies_at, command.dies_in, refused):
            try:
                self._segmenter.segment_folder(
                    images,
                    "out",
                    overlays="drawn" if command.overlays else None,
                    mask_bits=command.bits,
                    existing="overwrite" if command.overwrite else "resume",
                    retry_failed=command.retry_failed,
                    on_outcome=lambda o: ended.update({self._name(o.job.image): o}),
                    processes=0,
                )
            except DataError as error:
                return ended, error
        return ended, None

    def _is_made(self, mask: bytes) -> bool:
        return pixels_of(mask) in self._made.values()

    @staticmethod
    def _files(*folders: str, stat: bool = False) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for folder in folders:
            for path in Path(folder).rglob("*"):
                if path.is_file() and path.name != ".isicrt-journal.jsonl":
                    status = path.stat()
                    found[str(path)] = (status.st_ino, status.st_mtime_ns) if stat else path.read_bytes()
        return found

    def _image(self, name: str) -> Path:
        return self._images / f"{name}.jpg"

    @staticmethod
    def _mask(name: str) -> Path:
        return Path("out", f"{name}.png")

    @staticmethod
    def _overlay(name: str) -> Path:
        return Path("drawn", f"{name}.jpg")

    def _name(self, image: Path) -> str:
        return image.relative_to(self._folder).with_suffix("").as_posix()


def _whole(files: dict[str, Any]) -> dict[str, Any]:
    """Without what is left of a run that was cut off."""
    return {file: data for file, data in files.items() if not file.endswith(".tmp")}
