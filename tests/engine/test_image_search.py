"""What is found and what is left: isicrt's own folders, formats that it does not read, folders that cannot be read."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from isicrt.engine import image_search
from isicrt.engine.errors import DataError
from isicrt.engine.image_search import EXTENSIONS, UNREAD_EXTENSIONS
from isicrt.engine.journal import JOURNAL_NAME
from isicrt.engine.left_out import LeftOut
from isicrt.engine.output import OVERLAYS_NAME
from isicrt.engine.overlay import OverlayFolder
from isicrt.engine.sources import find_jobs


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, so that paths can be short literals."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def _pairs(images, out: str = "out", **options: str) -> dict[str, str]:
    return {str(job.image): str(job.mask) for job in find_jobs(images, out, **options)}


def _earlier_run() -> None:
    """Photographs in ``in`` with masks and overlays of an earlier run among them."""
    _touch("in/a.jpg", "in/x/b.jpg", "in/masks/a.png", "in/masks/x/b.png", f"in/masks/{JOURNAL_NAME}")
    _touch("in/drawn/a.jpg", "in/drawn/x/b.jpg", f"in/drawn/{OVERLAYS_NAME}")


PHOTOGRAPHS = {"in/a.jpg": "out/a.png", "in/x/b.jpg": "out/x/b.png"}


@pytest.mark.parametrize("images", ["in", "in/**", "in/**/*", "in/**/*.[jp][pn]g", "./in/", "*/**/*"])
def test_what_earlier_runs_wrote_is_left_out(here: Path, images: str) -> None:
    _earlier_run()
    jobs = find_jobs(images, "out")
    masks = {str(job.image): str(job.mask).replace("out/in/", "out/") for job in jobs}
    assert masks == PHOTOGRAPHS
    assert jobs.left_out.outputs == {"in/masks": "masks", "in/drawn": "overlays"}
    assert sorted(jobs.left_out.lines()) == [
        "left out in/drawn: overlays of an earlier run",
        "left out in/masks: masks of an earlier run",
    ]


@pytest.mark.parametrize(
    ("folder", "advice"),
    [
        ("in/masks", r"among the masks, name them by a pattern, such as 'in/masks/\*\.jpg'$"),
        ("in/drawn", "among the overlays, move them out of there$"),
    ],
)
def test_what_an_earlier_run_wrote_is_no_folder_of_photographs(here: Path, folder: str, advice: str) -> None:
    _earlier_run()
    with pytest.raises(DataError, match=advice):
        find_jobs(folder, "out")


def test_a_pattern_that_would_lead_into_them(here: Path) -> None:
    _earlier_run()
    assert _pairs("in/*/*.jpg") == {"in/x/b.jpg": "out/x/b.png"}
    with pytest.raises(DataError, match=r"no image found(.|\n)*  left out in/masks: masks of an earlier run"):
        find_jobs("in/*/x/*.png", "out")


@pytest.mark.parametrize(("images", "what"), [("in/masks", "masks"), ("in/drawn", "overlays"), ("link", "masks")])
def test_a_folder_that_isicrt_wrote_is_no_folder_of_photographs(here: Path, images: str, what: str) -> None:
    _earlier_run()
    Path("link").symlink_to("in/masks")
    with pytest.raises(DataError, match=f"{images}: isicrt wrote {what} there, and would take them for photographs"):
        find_jobs(images, "out")
    with pytest.raises(DataError, match="isicrt wrote"):
        find_jobs(["in/a.jpg", images], "out")


def test_the_folder_of_this_run_is_left_out_without_a_word(here: Path) -> None:
    _earlier_run()
    jobs = find_jobs("in", "in/masks", overlays="in/drawn")
    assert {str(job.image) for job in jobs} == set(PHOTOGRAPHS)
    assert jobs.left_out == LeftOut()


def test_masks_beside_images_can_be_made_again(here: Path) -> None:
    """Whoever names the images by a pattern may keep the masks, and their journal, among them."""
    _touch("in/a.jpg", "in/a.png", "in/x/b.jpg", "in/x/b.png", f"in/{JOURNAL_NAME}")
    for out in ("in", "out"):
        assert _pairs("in/**/*.jpg", out) == {"in/a.jpg": f"{out}/a.png", "in/x/b.jpg": f"{out}/x/b.png"}


def test_what_is_named_is_taken(here: Path) -> None:
    _earlier_run()
    Path("l.txt").write_text("in/masks/a.png\n")
    assert list(_pairs("in/masks/a.png")) == list(_pairs("l.txt")) == ["in/masks/a.png"]


def test_a_folder_of_overlays_is_marked(here: Path) -> None:
    for _ in range(2):
        OverlayFolder("out", "drawn")
        assert [path.name for path in Path("drawn").iterdir()] == [OVERLAYS_NAME]
    assert "photographs" in Path("drawn", OVERLAYS_NAME).read_text()


def test_long_lists_are_cut() -> None:
    left_out = LeftOut(outputs={f"in/{n}": "masks" for n in range(12)})
    assert len(left_out.lines()) == 11
    assert left_out.lines()[-1] == "left out 2 more folders of earlier runs"


@pytest.mark.parametrize("images", ["in", "in/**", "in/**/*.*", "in/*/**/*", "*/**/*"])
def test_what_disk_stations_and_macos_put_there_is_left_out(here: Path, images: str) -> None:
    _touch("in/x/a.jpg", "in/x/@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.png", "in/__MACOSX/x/a.jpg", "in/@home/b.jpg")
    jobs = find_jobs(images, "out")
    assert {str(job.image) for job in jobs} == {"in/x/a.jpg", "in/@home/b.jpg"}
    assert jobs.left_out == LeftOut()
    assert list(_pairs("in/x/@eaDir/*/*.png")) == ["in/x/@eaDir/a.jpg/SYNOPHOTO_THUMB_XL.png"]  # who names it means it


@pytest.mark.parametrize("images", ["in", "in/**", "in/**/*"])
def test_formats_that_are_not_read_are_counted(here: Path, images: str) -> None:
    _touch("in/a.jpg", "in/b.HEIC", "in/x/c.heic", "in/d.dcm", "in/.e.heic", "in/notes.txt", "in/f", "in/gif")
    jobs = find_jobs(images, "out")
    assert [str(job.image) for job in jobs] == ["in/a.jpg"]
    assert jobs.left_out.formats == {".heic": 2, ".dcm": 1}
    assert jobs.left_out.lines() == [
        "passed over 3 files that isicrt does not read: 2 .heic, 1 .dcm; convert them to .png or .jpg"
    ]
    assert jobs.left_out.describe() == {"folders": [], "formats": {".dcm": 1, ".heic": 2}, "unread": []}


@pytest.mark.parametrize("images", ["in", "in/**", "in/**/*"])
def test_images_without_an_extension_are_counted(here: Path, images: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _touch("in/a.jpg", "in/LICENSE", "in/notes.7")
    dicom = bytes(128) + b"DICM"
    for name in ("IM000001", "1.2.840.113619", "x/IM2"):
        Path("in", name).parent.mkdir(exist_ok=True)
        Path("in", name).write_bytes(dicom)
    Path("in/photo").write_bytes(b"\xff\xd8\xff\xe0")
    Path("in/.hidden").write_bytes(dicom)
    Path("in/dangling").symlink_to("nowhere")
    os.mkfifo("in/fifo")
    jobs = find_jobs(images, "out")
    assert [str(job.image) for job in jobs] == ["in/a.jpg"]
    assert jobs.left_out.formats == {"DICOM without an extension": 3, "JPEG without an extension": 1}
    assert jobs.left_out.lines() == [
        "passed over 4 files that isicrt does not read: 3 DICOM without an extension, 1 JPEG without an extension; "
        "convert them to .png or .jpg"
    ]
    monkeypatch.setattr(image_search, "_MOST_LOOKS", 0)
    assert not find_jobs(images, "out").left_out.formats


def test_nothing_but_formats_that_are_not_read(here: Path) -> None:
    _touch("in/a.gif", "in/b.heic")
    with pytest.raises(DataError, match=r"no image found(.|\n)*passed over 2 files that isicrt does not read: 1 \.gif"):
        find_jobs("in", "out")


def test_extensions() -> None:
    assert {".jfif", ".jpe"} < EXTENSIONS
    assert {".j2k", ".orf", ".rw2", ".mpo", ".ima"} < UNREAD_EXTENSIONS
    assert not EXTENSIONS & UNREAD_EXTENSIONS
    assert all(name == name.lower() and name.startswith(".") for name in EXTENSIONS | UNREAD_EXTENSIONS)


@pytest.fixture
def lock(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], None]:
    """Makes folders of a name unreadable: to root none is by its permissions."""

    def lock(name: str, number: int) -> None:
        read, look = os.scandir, os.lstat

        def scandir(path: str):
            if Path(path).name == name:
                raise OSError(number, os.strerror(number))
            return read(path)

        def lstat(path: str, **options: int | None) -> os.stat_result:
            if Path(path).parent.name == name:
                raise OSError(number, os.strerror(number))
            return look(path, **options)

        monkeypatch.setattr(os, "scandir", scandir)
        monkeypatch.setattr(os, "lstat", lstat)

    return lock


@pytest.mark.parametrize("images", ["in", "in/**/*", "in/**", "in/*/*.jpg", ["in/good", "in/lost+found"], "in/*/a.jpg"])
@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_folder_that_cannot_be_read_costs_what_is_in_it(
    here: Path, lock: Callable[[str, int], None], images, number: int
) -> None:
    _touch("in/good/a.jpg", "in/good/lost+found.jpg", "in/lost+found/a.jpg")
    lock("lost+found", number)
    jobs = find_jobs(images, "out")
    good = ["in/good/a.jpg"] if images == "in/*/a.jpg" else ["in/good/a.jpg", "in/good/lost+found.jpg"]
    assert [str(job.image) for job in jobs] == [*good, "in/lost+found"]
    assert (len(jobs), jobs[-1], jobs[len(good)], jobs[:1]) == (len(good) + 1, list(jobs)[-1], jobs[-1], [jobs[0]])
    failed = {str(job.mask): job.problem for job in jobs if job.problem is not None}
    assert failed == {"out/lost+found": f"in/lost+found: the folder cannot be read: {os.strerror(number)}"}
    assert jobs.left_out.describe()["unread"] == [
        {"folder": "in/lost+found", "reason": f"the folder cannot be read: {os.strerror(number)}"}
    ]


@pytest.mark.parametrize(("images", "locked"), [("in/*/../../other/*.jpg", None), ("in/*/../../*/*.jpg", "other")])
def test_a_pattern_that_goes_up(here: Path, images: str, locked: str | None, lock: Callable[[str, int], None]) -> None:
    _touch("in/x/a.jpg", "in/b.jpg", "other/a.jpg")
    if locked is not None:
        lock(locked, errno.EACCES)
    with pytest.raises(DataError, match=r"other: a pattern leads there by \.\. behind a wildcard"):
        find_jobs(images, "out")


def test_an_unreadable_folder_has_no_mask_to_clash_with(here: Path, lock: Callable[[str, int], None]) -> None:
    _touch("in/lost.jpg", "in/lost/a.jpg")
    lock("lost", errno.EACCES)
    assert [(str(job.mask), job.problem is None) for job in find_jobs("in", "out")] == [
        ("out/lost.png", True),
        ("out/lost", False),
    ]


@pytest.mark.parametrize("images", ["in", "in/*", "in/**/*.jpg"])
def test_nothing_that_can_be_read(here: Path, lock: Callable[[str, int], None], images: str) -> None:
    _touch("in/a.jpg")
    lock("in", errno.EACCES)
    with pytest.raises(DataError, match=r"no image found(.|\n)*  in: the folder cannot be read: Permission denied"):
        find_jobs(images, "out")


def test_a_pattern_does_not_run_round_a_loop(here: Path) -> None:
    _touch("zoo/x.jpg", "zoo/sub/x.jpg")
    Path("zoo/sub/up").symlink_to("..")
    for images in ("zoo/**/x.jpg", "zoo/**", "zoo/**/*.jpg", "zoo"):
        assert list(_pairs(images)) == ["zoo/x.jpg", "zoo/sub/x.jpg"]
    # By the only way that this one knows to the upper folder.
    assert list(_pairs("zoo/**/sub/**/x.jpg")) == ["zoo/sub/x.jpg", "zoo/sub/up/x.jpg"]


def test_many_loops_take_no_time(here: Path) -> None:
    """With two links in each of many folders there are more ways than can be gone."""
    for n in range(20):
        _touch(f"zoo/{n}/x.jpg")
        Path(f"zoo/{n}/up").symlink_to("..")
        Path(f"zoo/{n}/again").symlink_to("..")
    started = time.monotonic()
    assert len(_pairs("zoo/**/x.jpg")) == 20
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/*.jpg", ["in/a.jpg"]),
        ("*/a.jpg", ["in/a.jpg"]),
        ("in/?.jpg", ["in/a.jpg"]),
        ("in/.*/*.jpg", ["in/.h/c.jpg"]),
        ("in/.h/*.jpg", ["in/.h/c.jpg"]),
        ("in/[x]/../*.jpg", ["in/x/../a.jpg"]),
        ("in/**/y/*.jpg", ["in/x/y/d.jpg"]),
        ("in/**/**/d.jpg", ["in/x/y/d.jpg"]),
        ("in/x/[by]*", ["in/x/b.jpg"]),
        ("in/x.jpg/*.jpg", ["in/x.jpg/e.jpg"]),
        ("in/[x]*/*.jpg", ["in/x/b.jpg", "in/x.jpg/e.jpg"]),
        ("in/*/x.jpg", []),
        ("in/*/b.jpg/*", []),
        ("absent/*.jpg", []),
        ("in/a.jpg/*", []),
    ],
)
def test_patterns_match_as_those_of_glob(here: Path, pattern: str, expected: list[str]) -> None:
    _touch("in/a.jpg", "in/x/b.jpg", "in/.h/c.jpg", "in/x/y/d.jpg", "in/x.jpg/e.jpg", "in/x/.f.jpg")
    if expected:
        assert sorted(_pairs(pattern)) == sorted(expected)
    else:
        with pytest.raises(DataError, match="no image found"):
            find_jobs(pattern, "out")
