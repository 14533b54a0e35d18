"""Jobs are a sequence like a list of them, and take a hundredth of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from isicrt.engine.jobs import Job, Jobs
from isicrt.engine.names import PackedNames

EXPECTED = [
    Job(Path("in/a.jpg"), Path("out/a.png")),
    Job(Path("in/b.tar.jpg"), Path("out/b.tar.png")),
    Job(Path("in/photo"), Path("out/photo.png")),
    Job(Path("in/x/a.jpg"), Path("out/x/a.png")),
    Job(Path("in/../in/x/b.jpg"), Path("out/x/b.png")),
]


@pytest.fixture
def jobs() -> Jobs:
    jobs = Jobs(Path("out"))
    for folder, below, names in (
        ("in", ".", ["a.jpg", "b.tar.jpg", "photo"]),
        ("in/x", "x", ["a.jpg"]),
        ("in/../in/x", "x", ["b.jpg"]),
    ):
        packed = PackedNames()
        for name in names:
            packed.append(name)
        jobs.add_folder(folder, below, packed)
    return jobs


def test_they_are_a_sequence(jobs: Jobs) -> None:
    assert len(jobs) == 5
    assert list(jobs) == [jobs[n] for n in range(5)] == EXPECTED
    assert (jobs[-1], jobs[-5]) == (EXPECTED[-1], EXPECTED[0])
    assert jobs[1:4] == EXPECTED[1:4]
    assert jobs[::-2] == EXPECTED[::-2]
    assert jobs.index(EXPECTED[3]) == 3
    assert not Jobs(Path("out"))
    for n in (5, -6):
        with pytest.raises(IndexError):
            jobs[n]


def test_they_lie_in_folders(jobs: Jobs) -> None:
    assert list(jobs.folders()) == [
        ("in", Path("out"), range(3)),
        ("in/x", Path("out/x"), range(3, 4)),
        ("in/../in/x", Path("out/x"), range(4, 5)),
    ]
    assert [jobs.folder_of(n).images for n in range(5)] == ["in", "in", "in", "in/x", "in/../in/x"]
    assert (jobs.image_name(1), jobs.mask_name(1)) == ("b.tar.jpg", "b.tar.png")


def test_some_have_other_masks_or_problems(jobs: Jobs) -> None:
    jobs.keep_extension(0)
    jobs.keep_extension(3)
    jobs.fail(1, "first")
    jobs.fail(1, "last")
    assert [job.mask.name for job in jobs] == ["a.jpg.png", "b.tar.png", "photo.png", "a.jpg.png", "b.png"]
    assert [job.problem for job in jobs] == [None, "last", None, None, None]
    assert jobs[1].problem == "last"


def test_a_failure_is_a_job_and_no_image(jobs: Jobs) -> None:
    images = [job.image for job in jobs]
    jobs.add_failure(Job(Path("in/closed"), Path("out/closed"), "in/closed: the folder cannot be read"))
    assert len(jobs) == len(images) + 1
    assert jobs.images == images
