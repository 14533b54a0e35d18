"""What a second run in a folder does, the journal, the lock, and folders that fail."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isicrt.benchmarks.rendered import render
from isicrt.engine import journal
from isicrt.engine.errors import DataError, SettingsError
from isicrt.engine.finishing import Finished
from isicrt.engine.images import FileStamp, read_mask
from isicrt.engine.journal import JOURNAL_NAME, Journal, JournalIndex, encode_line, read_name, write_name
from isicrt.engine.ledger import Ledger
from isicrt.engine.lock import LOCK_NAME, FolderLock
from isicrt.engine.outcome import Outcome
from isicrt.engine.output import OutputError, OutputFolder, is_leftover, sync_file_system
from isicrt.engine.segmenter import Segmenter
from isicrt.engine.sources import Job, find_jobs
from tests.journal_lines import read_journal


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three images in ``in``, one of them damaged."""
    monkeypatch.chdir(tmp_path)
    Path("in/x").mkdir(parents=True)
    for n, name in enumerate(("a", "x/b")):
        Image.fromarray(render(n, (40, 60))[0]).save(f"in/{name}.jpg")
    Path("in/c.jpg").write_bytes(b"damaged")
    return tmp_path


def _run(segmenter: Segmenter, images: str = "in", **options: object) -> dict[str, str]:
    """Image -> done, skipped or the reason."""
    ended: dict[str, str] = {}
    segmenter.segment_folder(
        images,
        "out",
        on_outcome=lambda o: ended.update({o.job.image.stem: o.error or ("skipped" if o.skipped else "done")}),
        **options,
    )
    return ended


DAMAGED = "in/c.jpg: cannot be decoded: it is not a JPEG, PNG, BMP, TIFF or WebP image"
ALL_DONE = {"a": "done", "b": "done", "c": DAMAGED}
A_AGAIN = {"a": "done", "b": "skipped", "c": DAMAGED}
NONE_AGAIN = {"a": "skipped", "b": "skipped", "c": DAMAGED}


def _older_image() -> None:
    Image.fromarray(render(7, (50, 70))[0]).save("in/a.jpg")


def _torn_journal() -> None:
    journal = Path("out", JOURNAL_NAME)
    journal.write_bytes(journal.read_bytes() + b'{"status":"done","image":"a.jp')


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        pytest.param(lambda: None, {}, NONE_AGAIN, id="nothing"),
        pytest.param(lambda: None, {"existing": "overwrite"}, ALL_DONE, id="overwrite"),
        pytest.param(lambda: None, {"mask_bits": 8}, ALL_DONE, id="other_settings"),
        pytest.param(lambda: Path("out/a.png").unlink(), {}, A_AGAIN, id="mask_removed"),
        pytest.param(lambda: os.truncate("out/a.png", 40), {}, A_AGAIN, id="mask_cut"),
        pytest.param(lambda: Path("out/a.png").write_bytes(bytes(90)), {}, A_AGAIN, id="mask_zeroed"),
        pytest.param(_older_image, {}, A_AGAIN, id="image_changed"),
        pytest.param(lambda: os.utime("in/a.jpg", (1, 1)), {}, NONE_AGAIN, id="image_touched"),
        pytest.param(_torn_journal, {}, NONE_AGAIN, id="journal_torn"),
        pytest.param(lambda: None, {"overlays": "drawn"}, NONE_AGAIN, id="overlays_wanted"),
        pytest.param(
            lambda: shutil.copy("in/a.jpg", "in/c.jpg"), {}, NONE_AGAIN | {"c": "done"}, id="damaged_image_replaced"
        ),
    ],
)
def test_a_second_run(
    here: Path, segmenter: Segmenter, change: Callable[[], object], options: dict, expected: dict[str, str]
) -> None:
    assert _run(segmenter) == ALL_DONE
    change()
    assert _run(segmenter, **options) == expected
    for name in ("a", "x/b"):
        with Image.open(f"in/{name}.jpg") as image:
            assert read_mask(f"out/{name}.png").shape == (image.height, image.width)
    again = {} if options.get("existing") else options
    third = NONE_AGAIN if expected["c"] != "done" else NONE_AGAIN | {"c": "skipped"}
    assert _run(segmenter, **again) == third


def test_other_weights_are_another_model(here: Path, segmenter: Segmenter, darkness_onnx: Path) -> None:
    _run(segmenter)
    Path("other.onnx").write_bytes(darkness_onnx.read_bytes() + b"\x0a\x00")  # an empty producer name, last
    shutil.copy(darkness_onnx, "same.onnx")
    with Segmenter("same.onnx", threads=1) as same:
        assert _run(same) == NONE_AGAIN
    with Segmenter(darkness_onnx, threads=1, threshold=0.4) as other:
        assert _run(other) == ALL_DONE


def test_failures_are_not_tried_again_unless_asked(here: Path, segmenter: Segmenter) -> None:
    _run(segmenter)
    assert _run(segmenter)["c"] == DAMAGED
    for options, lines in ({}, 1), ({"retry_failed": True}, 2), ({}, 2):
        assert _run(segmenter, **options)["c"] == DAMAGED
        failed = [line["image_size"] for line in read_journal("out") if line.get("status") == "failed"]
        assert failed == [7] * lines


def test_a_run_that_finds_all_done_adds_two_lines(rendered_pairs: Path, tmp_path: Path, segmenter: Segmenter) -> None:
    (tmp_path / "in").mkdir()
    images = sorted((rendered_pairs / "images").iterdir())
    for n in range(100):
        (tmp_path / "in" / f"{n}.jpg").symlink_to(images[n % len(images)])
    (tmp_path / "in" / "damaged.jpg").write_bytes(b"damaged")
    for skipped in (0, 100):
        before = len(list(read_journal(tmp_path / "out"))) if skipped else 0
        assert segmenter.segment_folder(tmp_path / "in", tmp_path / "out").skipped == skipped
    added = list(read_journal(tmp_path / "out"))[before:]
    assert ["run" in added[0], "end" in added[-1], len(added), added[-1]["skipped"]] == [True, True, 2, 100]


def test_moved_images_are_the_same_images(here: Path, segmenter: Segmenter) -> None:
    _run(segmenter)
    Path("in").rename("moved")
    assert _run(segmenter, "moved") == {"a": "skipped", "b": "skipped", "c": DAMAGED.replace("in/", "moved/")}


def test_masks_of_other_images_are_not_replaced(here: Path, segmenter: Segmenter) -> None:
    _run(segmenter)
    before = Path("out/a.png").read_bytes()
    Path("other").mkdir()
    _older_image()
    shutil.copy("in/a.jpg", "other/a.jpg")
    with pytest.raises(DataError, match=r"1 files stand where masks go(.|\n)*out/a.png(.|\n)*--overwrite"):
        _run(segmenter, "other")
    assert Path("out/a.png").read_bytes() == before
    assert _run(segmenter, "other", existing="overwrite") == {"a": "done"}


def test_a_file_that_nobody_here_wrote_is_not_replaced(here: Path, segmenter: Segmenter) -> None:
    Path("out").mkdir()
    Path("out/a.png").write_bytes(b"drawn by hand")
    with pytest.raises(DataError, match=r"1 files stand where masks go(.|\n)*Move them away"):
        _run(segmenter)
    assert Path("out/a.png").read_bytes() == b"drawn by hand"


def test_what_a_killed_run_left_is_cleaned_and_finished(here: Path, segmenter: Segmenter) -> None:
    _run(segmenter)
    journal = Path("out", JOURNAL_NAME)
    lines = journal.read_bytes().splitlines(keepends=True)
    run = json.loads(lines[0])["run"]
    # Killed after a.png had its name and before its line, while x/b.png was under way.
    journal.write_bytes(b"".join(line for line in lines if b'"status"' not in line and b'"end"' not in line))
    for name in (f"out/.isicrt-{run}-01234567.tmp", f"out/x/.isicrt-{run}-89abcdef.tmp"):
        Path(name).write_bytes(b"half")
    kept = [Path(f"out/.isicrt-{'0' * 12}-01234567.tmp"), Path("out/.other.tmp")]
    for path in kept:
        path.touch()
    Path("out/x/b.png").unlink()
    assert _run(segmenter) == ALL_DONE
    assert sorted(Path("out").rglob("*.tmp")) == kept


def test_the_journal(here: Path, segmenter: Segmenter) -> None:
    name = os.fsdecode(b"\xff\n\x1b.jpg")
    shutil.copy("in/a.jpg", f"in/{name}")
    _run(segmenter)
    raw = Path("out", JOURNAL_NAME).read_bytes()
    assert raw.isascii()
    assert raw.endswith(b"\n")
    first, *middle, last = (json.loads(line) for line in raw.splitlines())
    assert (first["format"], first["settings"]["mask_bits"], first["images"]) == (1, 1, 4)
    assert len(first["model"]["sha256"]) == 64
    assert read_name(first["root"]) == str(here / "in")
    assert (last["end"], last["done"], last["failed"], last["skipped"]) == (first["run"], 3, 1, 0)
    ended = {read_name(line["image"]): line for line in middle if "status" in line}
    assert set(ended) == {"a.jpg", "c.jpg", "x/b.jpg", name}
    done = ended["a.jpg"]
    assert (done["status"], done["height"], done["width"], done["mask"]) == ("done", 40, 60, "a.png")
    assert done["mask_size"] == Path("out/a.png").stat().st_size
    assert done["image_mtime_ns"] == Path("in/a.jpg").stat().st_mtime_ns
    assert ended["c.jpg"]["reason"] == DAMAGED
    assert read_name(write_name(name)) == name


@pytest.mark.parametrize("value", [3, None, [], {}, {"base64": "*"}, {"base64": 3}, "\ud800.png"])
def test_what_is_no_name_in_a_journal(value: object) -> None:
    with pytest.raises(DataError, match="no file name"):
        read_name(value)


def test_rubbish_in_a_journal_is_passed_over_and_another_format_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "_LONGEST_LINE", 100)
    lines = [b"", b"[]", b"{", b'{"status":"done"}', b'{"status":"done","mask":3}', b'{"writing":"x"}', b"\xff\0", b"3"]
    lines += [rb'{"status":"done","mask":"\ud800.png"}', b'{"status":"done","mask":"' + b"x" * 500 + b'"}']
    (tmp_path / JOURNAL_NAME).write_bytes(b"\n".join(lines))
    assert len(JournalIndex(tmp_path)) == 0
    (tmp_path / JOURNAL_NAME).write_bytes(b"\n".join([*lines, b'{"status":"done","mask":"a.png"}']))
    assert JournalIndex(tmp_path).wrote("a.png")
    (tmp_path / JOURNAL_NAME).write_bytes(b'{"run":"x","format":99}\n')
    with pytest.raises(OutputError, match="format 99"):
        JournalIndex(tmp_path)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda path: path.mkdir(), id="folder"),
        pytest.param(lambda path: os.mkfifo(path), id="fifo"),
        pytest.param(lambda path: path.symlink_to("/dev/zero"), id="device"),
        pytest.param(lambda path: path.symlink_to("../a_file"), id="link"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs there")
def test_what_is_no_journal(here: Path, segmenter: Segmenter, make: Callable[[Path], object]) -> None:
    Path("out").mkdir()
    Path("a_file").touch()
    make(Path("out", JOURNAL_NAME))
    with pytest.raises(OutputError, match=f"{JOURNAL_NAME}: cannot be read: it is a link, or no plain file"):
        _run(segmenter)
    assert Path("a_file").stat().st_size == 0
    assert not Path("out", LOCK_NAME).exists()


def test_a_journal_that_vanishes_ends_the_run(tmp_path: Path) -> None:
    lines = Journal(tmp_path)
    lines.append({"a": 1})
    (tmp_path / JOURNAL_NAME).unlink()
    with pytest.raises(OutputError, match=r"journal .* was removed"):
        lines.append({"a": 2})
    lines.close()


@pytest.mark.parametrize("crc", ["x", [], 1e300, None])
def test_a_failure_that_somebody_edited(here: Path, segmenter: Segmenter, crc: object) -> None:
    _run(segmenter)
    path = Path("out", JOURNAL_NAME)
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    edited = [line | ({"image_crc": crc} if "image_crc" in line else {}) for line in lines]
    path.write_text("".join(json.dumps(line) + "\n" for line in edited))
    assert _run(segmenter) == NONE_AGAIN


def test_one_run_at_a_time(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(OutputError, match=rf"another run of isicrt is writing there \(process {os.getpid()} on "):
        FolderLock(tmp_path)
    lock.release()
    assert not (tmp_path / LOCK_NAME).exists()
    (tmp_path / LOCK_NAME).write_text("left by a run that was killed")
    FolderLock(tmp_path).release()


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("a_file")], ids=["fifo", "link"])
@pytest.mark.skipif(sys.platform == "win32", reason="no FIFOs there")
def test_what_is_no_lock(tmp_path: Path, make: Callable[[Path], object]) -> None:
    (tmp_path / "a_file").write_text("somebody's")
    make(tmp_path / LOCK_NAME)
    with pytest.raises(OutputError, match=f"{LOCK_NAME}: it is a link, or no plain file"):
        FolderLock(tmp_path)
    assert (tmp_path / "a_file").read_text() == "somebody's"


@pytest.mark.parametrize(
    ("number", "fatal"),
    [(errno.ENOSPC, True), (errno.EROFS, True), (errno.EISDIR, False), (errno.ENAMETOOLONG, False)],
)
def test_which_errors_end_a_run(tmp_path: Path, number: int, fatal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    output = OutputFolder(tmp_path, "0" * 12)
    monkeypatch.setattr(os, "write", fail)
    with pytest.raises(OutputError if fatal else OSError, match=os.strerror(number)):
        output.write(tmp_path / "a.png", b"data")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_vanishes_is_not_made_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    output = OutputFolder(out, "0" * 12, "always")
    output.write(out / "x" / "y" / "a.png", b"data")
    output.sync()
    assert (out / "x" / "y" / "a.png").read_bytes() == b"data"
    out.rename(tmp_path / "lost")
    with pytest.raises(OutputError, match=r"No such file(.|\n)*run the same command again"):
        output.write(out / "b.png", b"data")
    assert not out.exists()
    out.mkdir()  # the mount point below a lost mount
    with pytest.raises(OutputError, match="replaced by another folder, or unmounted"):
        output.write(out / "b.png", b"data")
    assert list(out.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="no list of open files here")
def test_a_journal_that_takes_no_line_is_closed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    jobs = list(find_jobs("in", "out"))
    before = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(os, "write", fail)
    for _ in range(3):
        with pytest.raises(OutputError, match="No space left"):
            Ledger("out", jobs, model={"name": "m", "sha256": "0"}, settings={})
    monkeypatch.undo()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_leftovers_are_only_ours() -> None:
    assert is_leftover(".isicrt-0123456789ab-01234567.tmp", {"0123456789ab"})
    assert not is_leftover(".isicrt-0123456789ab-01234567.tmp", {"ba9876543210"})
    assert not is_leftover("a.tmp", {"0123456789ab"})


@pytest.mark.parametrize("options", [{"existing": "perhaps"}, {"fsync": "sometimes"}])
def test_settings_out_of_range(tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(SettingsError):
        Ledger(tmp_path, [], model={}, settings={}, **options)


def test_a_sync_of_a_folder(tmp_path: Path) -> None:
    sync_file_system(tmp_path)
    with pytest.raises(OSError, match="No such file"):
        sync_file_system(tmp_path / "absent")


@pytest.mark.parametrize("out", [".", "a", "a/", "./a", "a/..", "../a", ".a", "{here}/a", "a\\"])
def test_names_in_the_journal_are_relative_whatever_the_folder_is_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    folder = Path(out.format(here=tmp_path / "here"))
    with Ledger(folder, [], model={"sha256": "0"}, settings={}) as ledger:
        for name in ("m.png", "s/m.png", "s/t/.m.png", " m.png", "\udce4.png", "a/m.png"):
            assert ledger._name(folder / name) == (folder / name).relative_to(folder).as_posix() == name
        with pytest.raises(ValueError, match="not in the subpath"):
            ledger._name(Path("/elsewhere/m.png"))


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("a.jpg", "a.png"),
        ("x/a.jpg", "x/a.png"),
        ("./x/a.jpg", "x/a.png"),
        ("y/a.jpg", "x/a.png"),
        ('x/"a\\b\t.jpg', 'x/"a\\b\t.png'),
        ("x/é.jpg", "x/é.png"),
        (os.fsdecode(b"x/\xff.jpg"), os.fsdecode(b"x/\xff.png")),
        ("..a/b.jpg", "..a/b.png"),
        ("x/%s.jpg", "x/%s.png"),
    ],
)
@pytest.mark.parametrize("absolute", [True, False])
def test_the_quick_line_is_the_slow_one(tmp_path: Path, here: Path, image: str, mask: str, absolute: bool) -> None:
    photos = tmp_path / "photos" if absolute else Path("photos")
    stamp = FileStamp(12, 1_795_799_470_281_960_034, 2**32 - 1)
    first = Job(photos / "first.jpg", tmp_path / "out" / "first.png")
    with Ledger(tmp_path / "out", [first], model={}, settings={}) as ledger:
        outcome = Outcome(Job(photos / image, tmp_path / "out" / mask), None, (10, 20), 0.1 + 0.2)
        for finished_stamp, sure in ((stamp, 0.93214), (stamp, 1.0), (stamp, None), (None, 0.5)):
            noted = ledger.note((10, 20), Finished(None, np.float64(0.1) / 3, 99, 7, 0.1, 0.1, sure), finished_stamp)
            assert noted.get("confidence") == (None if sure is None else round(sure, 4))
            assert (line := ledger._line(outcome, noted)) == encode_line(ledger._entry(outcome) | noted)
            assert json.loads(line)["mask"] == write_name(mask)
        ledger.record((outcome, noted), (outcome, None))
    lines = (tmp_path / "out" / JOURNAL_NAME).read_text().splitlines()
    assert lines[1:] == [line, encode_line(ledger._entry(outcome))]


def test_what_nothing_is_known_of_takes_no_look_at_the_disk(here: Path, segmenter: Segmenter) -> None:
    jobs = find_jobs("in", Path("out"))
    with Ledger("out", jobs, model={}, settings={}) as ledger:
        assert [ledger.may_know(job) for job in jobs] == [False] * 3
    _run(segmenter)
    for options, expected in (({}, True), ({"existing": "overwrite"}, False)):
        with Ledger("out", jobs, model={}, settings={}, **options) as ledger:
            assert [ledger.may_know(job) for job in jobs] == [expected] * 3
            assert not ledger.may_know(Job(Path("in/new.jpg"), Path("out/new.png")))
