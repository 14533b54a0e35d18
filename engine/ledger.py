"""One run in an output folder: what is there already, what is written, and the journal's line for every image."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from json.encoder import encode_basestring_ascii as encode_string
from pathlib import Path
from types import TracebackType
from typing import Any

from isicrt._version import __version__
from isicrt.engine.corrections import find_correction, find_drawn, is_as_written, stands
from isicrt.engine.errors import ImageError, SettingsError
from isicrt.engine.finishing import Finished
from isicrt.engine.images import FileStamp
from isicrt.engine.journal import (
    FORMAT,
    JOURNAL_NAME,
    LINES,
    Journal,
    JournalIndex,
    encode_line,
    has_mask,
    write_name,
)
from isicrt.engine.journal_fields import native_size, noted_of, root_of, same_file, source_of, stamp_fields, stamp_of
from isicrt.engine.lock import FolderLock
from isicrt.engine.masks import Mask
from isicrt.engine.outcome import KEPT, KEPT_DRAWN, KEPT_OUTDATED, Outcome
from isicrt.engine.output import FSYNC, BackgroundSync, OutputFolder, make_folder
from isicrt.engine.overlay import redraw
from isicrt.engine.overlay_label import label_of, read_label, remove_overlay
from isicrt.engine.sources import Job, overlay_path
from isicrt.engine.survey import survey

EXISTING = ("resume", "overwrite")


class Ledger:
    """Knows what earlier runs did in a folder, and notes what this one does. A context manager, for one run.

    While it is open no other run can open one on the folder. Its rules:

    - ``resume``: an image is skipped where the journal says that its mask was made by the same model with the same
      settings from the same file (path, size and time, or size and CRC), and the mask has the length and the CRC that
      were noted. A file that failed because of its bytes and has not changed counts as failed again, unless
      `retry_failed`. Everything else is done.
    - A mask that somebody changed since it was written (see `isicrt.engine.corrections.find_correction`) is kept by
      ``resume`` and counts as skipped, also where model, settings or the image are others now: `Outcome.kept` says so.
      One that is no mask as it stands, or that cannot be read, is kept too, and its image fails. The same holds of
      what stands at the place of a mask that could not be made.
    - ``overwrite``: everything is done.
    - A file at a mask's place that no run here wrote, or that was made from another image, is never replaced by
      ``resume``: the run is refused before it starts.

    Args:
        out: the folder; it is made.
        jobs: all of the run. Their masks lie below `out`.
        model: what identifies the model: a mapping with its ``sha256``.
        settings: what else decides how a mask looks.
        existing: one of `EXISTING`.
        retry_failed: see above.
        overlays: the folder of the overlays, if there are to be any; one that is missing, or that is not of the image
            and the mask that are there, is drawn again.
        fsync: one of `isicrt.engine.output.FSYNC`.

    Raises:
        SettingsError: an argument out of its range.
        OutputError: the folder cannot be made or written, or another run holds it.
        DataError: files in the way.
    """

    def __init__(
        self,
        out: str | os.PathLike[str],
        jobs: Sequence[Job],
        *,
        model: Mapping[str, Any],
        settings: Mapping[str, Any],
        existing: str = "resume",
        retry_failed: bool = False,
        overlays: str | os.PathLike[str] | None = None,
        fsync: str = "never",
    ) -> None:
        for name, value, allowed in (("existing", existing, EXISTING), ("fsync", fsync, FSYNC)):
            if value not in allowed:
                raise SettingsError(f"{name} {value!r}: must be one of {', '.join(allowed)}")
        self.run = secrets.token_hex(6)
        """12 hexadecimal digits of this run."""
        self._out = Path(out)
        self._prefix = os.path.join(self._out, "")  # noqa: PTH118 (what the masks' paths begin with)
        self.journal = self._out / JOURNAL_NAME
        """The journal's file."""
        self._overlays = None if overlays is None else Path(overlays)
        self._again: dict[str, Mapping[str, Any]] = {}  # what to note, by the masks' names, until it is recorded
        self.redrawn, self._counting = 0, threading.Lock()
        """Overlays that `check` drew of masks that were there."""
        self._resume, self._retry_failed = existing == "resume", retry_failed
        self._key = {"model": dict(model), "settings": dict(settings)}
        make_folder(self._out)
        self._lock = FolderLock(self._out)
        self.locked = self._lock.held
        """False where the file system knows no locks: then nothing keeps a second run away."""
        try:
            self.output = OutputFolder(self._out, self.run, fsync, self._overlays)
            self._sync = BackgroundSync(self.output)
            self._synced = False  # whether nothing was written since
            self._known = JournalIndex(self._out)
        except BaseException:
            self._lock.release()
            raise
        try:
            self._root = root_of(jobs[0], self._out) if jobs else ""
            self._below_root = os.path.join(self._root, "")  # noqa: PTH118 (what most images' paths begin with)
            survey(
                jobs,
                self._known,
                self._name,
                out=self._out,
                root=self._root,
                overlays=self._overlays,
                refuse=self._resume,
            )
            self._journal = Journal(self._out)
        except BaseException:
            self._known.close()
            self._lock.release()
            raise
        try:
            self._journal.append(
                {
                    "run": self.run,
                    "format": FORMAT,
                    "started": _now(),
                    "version": __version__,
                    **self._key,
                    "root": write_name(self._root),
                    "images": len(jobs),
                }
            )
        except BaseException:
            self._journal.close()
            self._known.close()
            self._lock.release()
            raise

    def to_do(self, images: int) -> int:
        """How many of so many images no earlier run has dealt with, at least."""
        return images - len(self._known) if self._resume else images

    def may_know(self, job: Job) -> bool:
        """Whether `check` may have something to say of an image. It takes no look at the disk. Any thread."""
        return self._resume and not self._known.is_empty and self._known.may_know(self._name(job.mask))

    def check(self, job: Job, draw: Callable[[Job, Mask], None] | None = None) -> Outcome | None:
        """How an image has ended already; None where it is to be done. Any thread.

        Args:
            job: of the image.
            draw: draws the overlay of a mask that is there and lacks it; without it the mask is made again.

        Raises:
            OutputError: as of `draw`.
            ImageError: its mask's place is taken by the mask of another image, its overlay cannot be written, or see
                `find_correction`, `find_drawn`.
        """
        found = self._known.find(self._name(job.mask)) if self._resume else None
        if found is None:
            return None
        entry, run = found
        try:
            image = os.stat(job.image)  # noqa: PTH116 (once for each image)
        except OSError:
            return None  # to be found out again by reading it
        same_place = source_of(entry, run) == _absolute(job.image)
        same_stat = (entry.get("image_size"), entry.get("image_mtime_ns")) == (image.st_size, image.st_mtime_ns)
        same = same_place and same_stat
        if not has_mask(entry):
            if entry.get("status") != "failed":
                return None
            if (drawn := find_drawn(job.mask)) is not None:
                return Outcome(job, None, drawn.native_size, drawn.lesion, skipped=True, kept=KEPT_DRAWN)
            if not same or run.get("version") != __version__ or self._retry_failed:
                return None
            return Outcome(job, str(entry.get("reason")), None, None, damaged=stamp_of(entry), untried=True)
        found_again = None if same else same_file(job, entry, image.st_size)
        changed = not same and found_again is None
        if changed and not same_place and stands(job.mask):
            raise ImageError(
                f"{job.image}: {job.mask} is the mask of another image, {source_of(entry, run)}. "
                "Use another --out, or --overwrite"
            )
        size = native_size(entry)
        if size is None:
            return None
        outdated = changed or {"model": run.get("model"), "settings": run.get("settings")} != self._key
        if is_as_written(job.mask, size, entry):
            if outdated or not (self._has_overlay(job, entry) or (draw is not None and self._redraw(draw, job, size))):
                return None
            self._note_again(job, found, found_again)
            lesion, sure = (x if isinstance(x := entry.get(n), float) else None for n in ("lesion_share", "confidence"))
            note = n if isinstance(n := entry.get("note"), str) else None
            return Outcome(job, None, size, lesion, skipped=True, confidence=sure, note=note)
        # Of an image that is another one now nobody knows the size yet; what somebody drew is not lost for that.
        correction = find_correction(job.mask, None if changed else size, entry)
        if correction is None:
            return None
        kept = KEPT_OUTDATED if outdated else KEPT
        if not outdated:  # a line is of its run's model and settings
            self._note_again(job, found, found_again)
        return Outcome(job, None, correction.native_size, correction.lesion, skipped=True, kept=kept)

    def announce(self, jobs: Iterable[Job]) -> None:
        """These masks are about to be written: what a kill leaves of them is ours. Raises OutputError."""
        self._synced = False
        self._journal.append({"writing": [write_name(self._name(job.mask)) for job in jobs]})

    @staticmethod
    def note(native_size: tuple[int, int], finished: Finished, stamp: FileStamp | None) -> dict[str, Any]:
        """What `record` is to note of a mask that was announced and written."""
        noted: dict[str, Any] = {
            "height": native_size[0],
            "width": native_size[1],
            "lesion_share": round(float(finished.lesion or 0.0), 6),
        }
        if finished.confidence is not None:
            noted["confidence"] = round(float(finished.confidence), 4)
        noted |= {"mask_size": finished.size, "mask_crc": finished.crc}
        return noted if stamp is None else noted | stamp_fields(stamp)

    def record(self, *ended: tuple[Outcome, Mapping[str, Any] | None]) -> None:
        """Append the lines of images that have ended, with what `note` says of their masks. Any thread.

        Of what is as the line before says there is none: a run that finds all done would add one for each image.

        Raises OutputError.
        """
        self._synced = False
        settled = [(self._settle(outcome), noted) for outcome, noted in ended]
        if self._again:
            settled = [(o, noted or self._again.pop(self._name(o.job.mask), None)) for o, noted in settled]
        self._journal.append_lines([self._line(o, noted) for o, noted in settled if noted or _is_news(o)])
        self._sync.now_and_then()

    def _line(self, outcome: Outcome, noted: Mapping[str, Any] | None) -> str:
        """What `encode_line` makes of an entry; of nearly all that are done in a third of the time."""
        done = outcome.error is None and not outcome.skipped
        if done and noted is not None and (quick := LINES.get(tuple(noted))) is not None:
            image, mask = str(outcome.job.image), self._name(outcome.job.mask)
            below = mask[: mask.rfind("/") + 1] + image[image.rfind("/") + 1 :]
            plain = image == self._below_root + below and image.isascii() and mask.isascii() and "/." not in image
            if plain and os.sep == "/":
                return quick % (encode_string(below), encode_string(mask), *noted.values())
        return encode_line(self._entry(outcome) | dict(noted or {}))

    def _entry(self, outcome: Outcome) -> dict[str, Any]:
        status = "failed" if outcome.error is not None else "skipped" if outcome.skipped else "done"
        mask, source = self._name(outcome.job.mask), _absolute(outcome.job.image)
        image = os.path.join(os.path.dirname(mask), outcome.job.image.name)  # noqa: PTH118, PTH120 (once for each image)
        entry: dict[str, Any] = {"status": status, "image": write_name(image), "mask": write_name(mask)}
        if source != os.path.join(self._root, image):  # noqa: PTH118
            entry["source"] = write_name(source)
        if outcome.error is not None:
            entry["reason"] = outcome.error.encode("utf-8", "backslashreplace").decode()
        if outcome.kept is not None:
            entry["kept"] = outcome.kept
        if outcome.damaged is not None:
            entry |= stamp_fields(outcome.damaged)
        return entry

    def sync(self) -> None:
        """Bring masks and lines to the disk, unless `fsync` is ``never`` or they are. Raises OutputError, that of an
        earlier sync too."""
        if not self._synced:
            self._sync.finish()
            self._synced = True

    def finish(self, summary: Mapping[str, Any], *, sync: bool = True) -> None:
        """Append the run's last line; with `sync` once everything is on the disk, as it then is. Raises OutputError."""
        if sync:
            self.sync()
        self._journal.append({"end": self.run, "ended": _now(), **summary})
        if sync and self.output.syncs:
            self._journal.sync()

    def close(self) -> None:
        """Give the folder back."""
        self._known.close()
        self._journal.close()
        self._lock.release()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _name(self, mask: Path) -> str:
        """A mask's path relative to the folder, with slashes."""
        path = str(mask)  # three times for each image: `relative_to` would be a good part of what an image costs here
        if not path.startswith(self._prefix):
            return mask.relative_to(self._out).as_posix()
        name = path[len(self._prefix) :]
        return name if os.sep == "/" else name.replace(os.sep, "/")

    def _note_again(
        self, job: Job, found: tuple[Mapping[str, Any], Mapping[str, Any]], stamp: FileStamp | None
    ) -> None:
        """Have the line of an image that was moved or touched note what is known of its mask: each run to come would
        read it to know it again. Not of a copy, whose first file is where it was: the mask stays that one's."""
        entry, source = found[0], source_of(*found)
        if stamp is not None and source is not None and (source == _absolute(job.image) or not stands(Path(source))):
            self._again[self._name(job.mask)] = noted_of(entry) | stamp_fields(stamp)

    def _has_overlay(self, job: Job, entry: Mapping[str, Any]) -> bool:
        """Whether the overlay of a mask that is as it was written is there, if there is to be one."""
        if self._overlays is None:
            return True
        image, mask = entry.get("image_crc"), entry.get("mask_crc")
        label = label_of(image, mask) if isinstance(image, int) and isinstance(mask, int) else b""
        return read_label(overlay_path(job.mask, self._out, self._overlays)) == label

    def _redraw(self, draw: Callable[[Job, Mask], None], job: Job, size: tuple[int, int]) -> bool:
        drawn = redraw(draw, job, size)
        with self._counting:
            self.redrawn += drawn
        return drawn

    def _settle(self, outcome: Outcome) -> Outcome:
        """Remove the mask of a file that has been replaced by a damaged one: it is nobody's any more, nor is one that a
        killed run had announced. Nor is the overlay of such a mask, or of one that was changed.

        Returns:
            The outcome; without its stamp where the mask there is not known to be made from other bytes: then the
            failure is not theirs (memory was short, a library is another one), and the mask and its line stay. So it
            is where that mask cannot be removed.
        """
        if outcome.damaged is None and outcome.kept is None:
            return outcome
        mask = outcome.job.mask
        found = self._known.find(name := self._name(mask))
        entry = {"status": "done"} if found is None else found[0]
        if outcome.damaged is not None and self._known.wrote(name):
            if has_mask(entry) and entry.get("image_crc") in (None, outcome.damaged.crc):
                return replace(outcome, damaged=None)
            if not _is_removed(mask):  # it must not be taken for somebody's drawing: the next run tries again
                return replace(outcome, damaged=None)
        if self._overlays is not None:
            # Of a mask that a killed run had announced any overlay may be.
            remove_overlay(
                overlay_path(mask, self._out, self._overlays),
                lambda *crcs: "writing" in entry or self._known.has_noted(name, *crcs),
            )
        return outcome


def _is_news(outcome: Outcome) -> bool:
    return outcome.kept is not None or not (outcome.skipped or outcome.untried)


def _is_removed(file: Path) -> bool:
    try:
        file.unlink(missing_ok=True)
    except OSError as error:
        return isinstance(error, NotADirectoryError)
    return True


def _absolute(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 (links stay as they are)


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
