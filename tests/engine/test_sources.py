"""Which images are found, where their masks go, and which clashes are found up front."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from isicrt.engine import names
from isicrt.engine.errors import DataError, SettingsError
from isicrt.engine.output import OVERLAYS_NAME
from isicrt.engine.sources import EXTENSIONS, find_jobs, overlay_path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, so that paths can be short literals."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(params=["own_hashes", "one_hash_for_all"])
def hashes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are compared by hash first; where all of these agree, nothing else may come out."""
    if request.param == "one_hash_for_all":
        monkeypatch.setattr(names, "key_hash", lambda key: 7)


def _touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()


def _pairs(images, out="out", **options: str) -> dict[str, str]:
    return {str(job.image): str(job.mask) for job in find_jobs(images, out, **options)}


@pytest.mark.parametrize(
    ("files", "images", "expected"),
    [
        pytest.param(["in/b.png", "in/a.jpg"], "in", {"in/a.jpg": "out/a.png", "in/b.png": "out/b.png"}, id="folder"),
        pytest.param(["in/x/y/a.jpg"], "in", {"in/x/y/a.jpg": "out/x/y/a.png"}, id="tree_is_mirrored"),
        pytest.param(["in/a.JPG"], "in/", {"in/a.JPG": "out/a.png"}, id="upper_case"),
        pytest.param(["in/a.b.jpg"], "in", {"in/a.b.jpg": "out/a.b.png"}, id="two_dots"),
        pytest.param(["in/a.jpg", "in/a.txt", "in/b"], "in", {"in/a.jpg": "out/a.png"}, id="others_are_left_out"),
        pytest.param(["in/.a.jpg", "in/.x/a.jpg", "in/b.jpg"], "in", {"in/b.jpg": "out/b.png"}, id="dots_are_left_out"),
        pytest.param(["in/x.jpg/a.jpg"], "in", {"in/x.jpg/a.jpg": "out/x.jpg/a.png"}, id="folder_named_as_an_image"),
        pytest.param(["in/a.jpg"], "in/a.jpg", {"in/a.jpg": "out/a.png"}, id="file"),
        pytest.param(["in/photo"], "in/photo", {"in/photo": "out/photo.png"}, id="file_without_extension"),
        pytest.param(["in/[1].jpg"], "in/[1].jpg", {"in/[1].jpg": "out/[1].png"}, id="a_file_before_a_pattern"),
        pytest.param(["in/a.jpg", "in/b.png"], "in/*.jpg", {"in/a.jpg": "out/a.png"}, id="pattern"),
        pytest.param(
            ["in/x/a.jpg", "in/y/a.jpg"],
            "in/*/a.jpg",
            {"in/x/a.jpg": "out/x/a.png", "in/y/a.jpg": "out/y/a.png"},
            id="pattern_mirrors_below_its_fixed_part",
        ),
        pytest.param(
            ["in/a.jpg", "in/x/b.jpg"],
            "in/**/*.jpg",
            {"in/a.jpg": "out/a.png", "in/x/b.jpg": "out/x/b.png"},
            id="recursive_pattern",
        ),
        pytest.param(
            ["in/x/a.jpg", "in/b.jpg", "in/c.md"], "in/*", {"in/b.jpg": "out/b.png"}, id="pattern_takes_images"
        ),
        pytest.param(
            ["in/a.jpg", "in/b.jpg"],
            ["in/b.jpg", "in/a.jpg"],
            {"in/a.jpg": "out/a.png", "in/b.jpg": "out/b.png"},
            id="files",
        ),
        pytest.param(
            ["in/x/a.jpg", "in/y/a.jpg"],
            ["in/x", "in/y"],
            {"in/x/a.jpg": "out/x/a.png", "in/y/a.jpg": "out/y/a.png"},
            id="folders_are_told_apart",
        ),
        pytest.param(
            ["in/a.jpg", "in/x/a.jpg"],
            ["in/a.jpg", "in/x"],
            {"in/a.jpg": "out/a.png", "in/x/a.jpg": "out/x/a.png"},
            id="what_a_shell_makes_of_a_star",
        ),
        pytest.param(["in/a.jpg"], ["in/a.jpg", "./in/../in/a.jpg"], {"in/../in/a.jpg": "out/a.png"}, id="named_twice"),
    ],
)
def test_what_is_found(here: Path, files: list[str], images, expected: dict[str, str]) -> None:
    _touch(*files)
    assert _pairs(images) == expected


def test_every_extension_counts(here: Path) -> None:
    _touch(*(f"in/{n}{extension}" for n, extension in enumerate(sorted(EXTENSIONS))))
    assert len(find_jobs("in", "out")) == len(EXTENSIONS) == 9


def test_they_are_sorted(here: Path) -> None:
    _touch("in/c.jpg", "in/a/z.jpg", "in/b.jpg")
    assert list(_pairs("in")) == ["in/b.jpg", "in/c.jpg", "in/a/z.jpg"]


def test_absolute_and_relative_paths_give_the_same_masks(here: Path) -> None:
    _touch("in/x/a.jpg")
    assert list(_pairs(here / "in").values()) == list(_pairs("in").values()) == ["out/x/a.png"]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_a_list_is_read_relative_to_itself(here: Path, newline: str, start: bytes) -> None:
    lines = ["one/a.jpg", "", "two/b c.jpg", str(here / "in" / "absent.jpg")]
    _touch("in/list.txt")
    Path("in/list.txt").write_bytes(start + newline.join(lines).encode())
    assert sorted(_pairs("in/list.txt").values()) == ["out/absent.png", "out/one/a.png", "out/two/b c.png"]


def test_a_list_that_leaves_its_folder_stays_below_out(here: Path) -> None:
    _touch("lists/l.txt")
    Path("lists/l.txt").write_text("../in/a.jpg\nb.jpg\n")
    assert sorted(_pairs("lists/l.txt").values()) == ["out/in/a.png", "out/lists/b.png"]


def test_names_that_are_not_utf8(here: Path) -> None:
    name = os.fsdecode(b"in/\xff\n.jpg")
    _touch(name)
    Path("l.txt").write_bytes(b"in/\xff.jpg\n")
    assert _pairs("in") == {name: os.fsdecode(b"out/\xff\n.png")}
    assert list(_pairs("l.txt")) == [os.fsdecode(b"in/\xff.jpg")]


def test_links_are_followed_and_loops_end(here: Path) -> None:
    _touch("elsewhere/a.jpg", "in/b.jpg")
    Path("in/link").symlink_to(here / "elsewhere")
    Path("in/loop").symlink_to(here / "in")
    Path("in/link.jpg").symlink_to(here / "elsewhere" / "a.jpg")
    assert list(_pairs("in")) == ["in/b.jpg", "in/link.jpg", "in/link/a.jpg"]


def test_masks_and_overlays_inside_the_images_are_not_images(here: Path) -> None:
    _touch("in/a.jpg", "in/masks/a.png", "in/masks/x/b.png", "in/overlays/earlier/a.jpg")
    _touch(f"in/overlays/{OVERLAYS_NAME}")
    for images in ("in", "in/**/*", "in/**"):
        assert _pairs(images, "in/masks", overlays="in/overlays") == {"in/a.jpg": "in/masks/a.png"}


def test_overlays_lie_as_the_masks_do() -> None:
    assert overlay_path(Path("out/x/a.png"), "out", "drawn") == Path("drawn/x/a.jpg")


@pytest.mark.parametrize(
    ("files", "images", "message"),
    [
        pytest.param([], "absent", "absent: no such file or folder", id="absent"),
        pytest.param([], "a" * 300, "File name too long", id="name_too_long"),
        pytest.param([], [], "no images were named", id="no_argument"),
        pytest.param(["in/a.txt"], "in", r"in: no image found \(looked for \.bmp, \.jfif, \.jpe", id="no_image"),
        pytest.param(["in/a.jpg"], "in/*.png", "no image found", id="no_match"),
        pytest.param(["in/l.txt"], "in/l.txt", "the list is empty", id="empty_list"),
        pytest.param(["a.jpg", "l.txt"], ["a.jpg", "l.txt"], "must be the only argument", id="list_among_others"),
    ],
)
def test_nothing_to_do(here: Path, files: list[str], images, message: str) -> None:
    _touch(*files)
    with pytest.raises(DataError, match=message):
        find_jobs(images, "out")


def test_a_binary_list(here: Path) -> None:
    Path("l.txt").write_bytes(b"\0\1\2")
    with pytest.raises(DataError, match="not a text file"):
        find_jobs("l.txt", "out")


@pytest.mark.parametrize(
    "names",
    [
        ["a.jpg", "a.png"],
        ["a.jpg", "A.jpg"],
        ["x/a.jpg", "X/a.jpg"],
        ["\u00e9.jpg", "e\u0301.jpg"],  # one letter or a letter and an accent
    ],
    ids=["stem", "case", "case_of_a_folder", "normal_form"],
)
@pytest.mark.usefixtures("hashes")
def test_masks_with_one_name_are_found_up_front(here: Path, names: list[str]) -> None:
    _touch("in/good.jpg", *(f"in/{name}" for name in names))
    with pytest.raises(DataError) as caught:
        find_jobs("in", "out")
    message = str(caught.value)
    assert all(f"in/{name}" in message for name in names)
    assert "1 masks would belong to more than one image" in message
    assert "Rename the images" in message
    assert "good" not in message


@pytest.mark.parametrize(
    ("names", "rule", "expected"),
    [
        pytest.param(
            ["a.jpg", "a.png", "b.jpg"],
            "extension",
            {"in/a.jpg": "out/a.jpg.png", "in/a.png": "out/a.png.png", "in/b.jpg": "out/b.png"},
            id="extension",
        ),
        pytest.param(
            ["a.jpg", "A.jpg", "b.jpg"],
            "fail",
            {"in/a.jpg": "out/a.png", "in/A.jpg": "out/A.png", "in/b.jpg": "out/b.png"},
            id="fail",
        ),
    ],
)
@pytest.mark.usefixtures("hashes")
def test_clashes_can_cost_only_themselves(here: Path, names: list[str], rule: str, expected: dict[str, str]) -> None:
    _touch(*(f"in/{name}" for name in names))
    jobs = find_jobs("in", "out", on_clash=rule)
    assert {str(job.image): str(job.mask) for job in jobs} == expected
    problems = {str(job.image): job.problem for job in jobs if job.problem}
    assert set(problems) == ({"in/a.jpg", "in/A.jpg"} if rule == "fail" else set())
    if problems:
        assert problems["in/a.jpg"] == "in/a.jpg: in/A.jpg would have the same mask, out/a.png"


@pytest.mark.parametrize(
    ("rule", "expected", "problems"),
    [
        ("extension", {"in/a.jpg": "out/a.jpg.png", "in/a.png/b.jpg": "out/a.png/b.png"}, {}),
        (
            "fail",
            {"in/a.jpg": "out/a.png", "in/a.png/b.jpg": "out/a.png/b.png"},
            {"in/a.jpg": "in/a.jpg: its mask, out/a.png, would stand where a folder of masks goes"},
        ),
    ],
)
@pytest.mark.usefixtures("hashes")
def test_a_mask_and_a_folder_of_one_name(
    here: Path, rule: str, expected: dict[str, str], problems: dict[str, str]
) -> None:
    _touch("in/a.jpg", "in/a.png/b.jpg")
    with pytest.raises(DataError, match=r"1 masks would (.|\n)*  in/a.jpg -> out/a.png, a folder\n"):
        find_jobs("in", "out")
    jobs = find_jobs("in", "out", on_clash=rule)
    assert {str(job.image): str(job.mask) for job in jobs} == expected
    assert {str(job.image): job.problem for job in jobs if job.problem} == problems


@pytest.mark.usefixtures("hashes")
def test_clashes_that_an_extension_does_not_settle(here: Path) -> None:
    _touch("in/a.jpg", "in/A.jpg")
    with pytest.raises(DataError, match="1 masks would belong"):
        find_jobs("in", "out", on_clash="extension")
    with pytest.raises(SettingsError, match="on_clash"):
        find_jobs("in", "out", on_clash="perhaps")


@pytest.mark.parametrize("images", ["", [""], ["in", ""]])
def test_an_empty_name_is_not_the_current_folder(here: Path, images) -> None:
    _touch("in/a.jpg", "a.jpg")
    with pytest.raises(DataError, match="empty name"):
        find_jobs(images, "out")
    with pytest.raises(DataError, match="for the masks has no name"):
        find_jobs("in", "")
    with pytest.raises(DataError, match="for the overlays has no name"):
        find_jobs("in", "out", overlays="")


@pytest.mark.parametrize("overlays", ["out", "out/", "in/../out", "link"])
def test_overlays_never_lie_among_the_masks(here: Path, overlays: str) -> None:
    _touch("in/a.jpg")
    Path("link").symlink_to(here / "out")
    with pytest.raises(SettingsError, match="out: masks and overlays must go to different folders"):
        find_jobs("in", "out", overlays=overlays)


def test_a_mask_whose_name_is_too_long_costs_its_image(here: Path) -> None:
    long, longest = "x" * 252 + ".ab", "y" * 251 + ".jpg"
    _touch(f"in/{long}", f"in/{longest}")
    jobs = find_jobs([f"in/{long}", f"in/{longest}"], "out")
    assert {job.image.name: job.problem for job in jobs} == {
        long: f"in/{long}: its mask's name would be longer than 255 bytes",
        longest: None,
    }


def test_a_link_to_itself_is_one_bad_image(here: Path) -> None:
    _touch("in/a.jpg")
    Path("in/b.jpg").symlink_to("b.jpg")
    Path("in/folder").symlink_to("folder")
    assert list(_pairs("in")) == ["in/a.jpg", "in/b.jpg"]


def test_many_entries(here: Path) -> None:
    for folder in range(4):
        Path(f"in/{folder}").mkdir(parents=True)
        for n in range(2500):
            os.close(os.open(f"in/{folder}/{n}.jpg", os.O_CREAT))
    jobs = find_jobs("in", "in/masks")
    assert len({job.mask for job in jobs}) == 10_000


_FIND = """
import sys, tracemalloc
from isicrt.engine.sources import find_jobs

find_jobs(sys.argv[1], "out")  # what is made once
tracemalloc.start()
jobs = find_jobs(sys.argv[1], "out")
kept, peak = tracemalloc.get_traced_memory()
print(kept / len(jobs), peak / len(jobs))
"""


@pytest.mark.parametrize("images", ["in", "in/*/*.jpg", "list.txt"])
def test_many_images_take_little_memory(here: Path, images: str) -> None:
    """In a process of its own: the interpreter's table of names grows by a multiple of what other tests left in it."""
    # A list of jobs took 600, and 1,000 for a time; that table may take 100.
    lines = [f"in/{folder}/ISIC_{n:07d}.jpg" for folder in range(2) for n in range(10_000)]
    Path("list.txt").write_text("\n".join(lines))
    for folder in range(2):
        Path(f"in/{folder}").mkdir(parents=True)
    for line in lines:
        os.close(os.open(line, os.O_CREAT))
    run = subprocess.run([sys.executable, "-c", _FIND, images], check=True, capture_output=True, text=True)
    kept, peak = map(float, run.stdout.split())
    assert kept < 150
    assert peak < 300


def test_an_image_that_is_named_in_two_ways_is_there_as_at_last(here: Path) -> None:
    _touch("in/a.jpg", "in/b.jpg", "in/c.jpg")
    images = ["in/a.jpg", "in/../in/b.jpg", "in/../in/a.jpg", "in/c.jpg", "in/b.jpg", "in/c.jpg"]
    assert list(_pairs(images).items()) == [
        ("in/../in/a.jpg", "out/a.png"),
        ("in/b.jpg", "out/b.png"),
        ("in/c.jpg", "out/c.png"),
    ]


def test_names_come_in_the_order_of_their_letters(here: Path) -> None:
    found = [os.fsdecode(b"\xff.jpg"), "\uffee.jpg", "\U0001f600.jpg", "B.jpg", "a b.jpg", "a.b.jpg", "\u00e9.jpg"]
    _touch(*(f"in/{name}" for name in found))
    assert [job.image.name for job in find_jobs("in", "out")] == sorted(found)


def test_a_long_list_of_clashes_is_cut(here: Path) -> None:
    _touch(*(f"in/{n}.{extension}" for n in range(25) for extension in ("jpg", "png")))
    with pytest.raises(DataError, match="25 masks") as caught:
        find_jobs("in", "out")
    assert "and 15 more" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 13


@pytest.mark.parametrize(
    ("files", "images", "out", "overlays", "message"),
    [
        pytest.param(["in/a.png"], "in/a.png", "in", None, "replaced by their own masks", id="file"),
        pytest.param(["in/a.PNG"], "in/a.PNG", "in", None, "replaced by their own masks", id="in_another_case"),
        pytest.param(["in/a.png"], "in/*.png", "in", None, "replaced by their own masks", id="pattern"),
        pytest.param(["in/a.png"], "in/a.png", "link", None, "replaced by their own masks", id="through_a_link"),
        pytest.param(["in/a.png"], "in", "in", None, "replaced by their own masks", id="folder"),
        pytest.param(["in/a.jpg"], "in", "in", None, "taken for images next time", id="folder_of_jpegs"),
        pytest.param(["in/in/a.jpg"], "in", ".", None, "taken for images next time", id="lands_inside"),
        pytest.param(["in/a.jpg"], "in/a.jpg", "out", "in", "replaced by their own overlays", id="overlay_on_image"),
        pytest.param(["in/a.png"], "in", "out", "in", "taken for images next time", id="overlay_among_images"),
    ],
)
@pytest.mark.usefixtures("hashes")
def test_no_image_is_ever_replaced(here: Path, files: list[str], images, out: str, overlays, message: str) -> None:
    _touch(*files)
    Path("link").symlink_to(here / "in")
    with pytest.raises(DataError, match=message):
        find_jobs(images, out, overlays=overlays)


@pytest.mark.usefixtures("hashes")
def test_masks_beside_images_that_were_named(here: Path) -> None:
    _touch("in/a.jpg", "in/b.jpg")
    assert _pairs("in/*.jpg", "in") == {"in/a.jpg": "in/a.png", "in/b.jpg": "in/b.png"}
