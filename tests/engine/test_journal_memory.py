"""What a second run on many images keeps of the first one."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from isicrt.engine import names
from isicrt.engine.errors import DataError
from isicrt.engine.journal import FORMAT, JOURNAL_NAME, JournalIndex
from isicrt.engine.ledger import Ledger
from isicrt.engine.sources import find_jobs

COUNT = 20_000


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A list of many images, their masks, and the journal that says so."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(names, "_LATEST", 100)  # what is the same for few and for many would hide what is not
    stems = [f"ISIC_{n:07d}" for n in range(COUNT)]
    Path("list.txt").write_text("".join(f"in/{stem}.jpg\n" for stem in stems))
    Path("out").mkdir()
    with Path("out", JOURNAL_NAME).open("w") as journal:
        first = {"run": "0" * 12, "format": FORMAT, "root": str(tmp_path / "in"), "model": {}, "settings": {}}
        journal.write(json.dumps(first) + "\n")
        for stem in stems:
            Path("out", f"{stem}.png").touch()
            journal.write(json.dumps({"writing": [f"{stem}.png"]}) + "\n")
            done = {"status": "done", "image": f"{stem}.jpg", "mask": f"{stem}.png"}
            journal.write(json.dumps(done) + "\n")
    return tmp_path


@contextmanager
def _traced() -> Iterator[list[float]]:
    """Bytes an image that are allocated inside, at the end and at most, in the list that it gives."""
    bytes_: list[float] = []
    tracemalloc.start()
    try:
        yield bytes_
        bytes_ += [traced / COUNT for traced in tracemalloc.get_traced_memory()]
    finally:
        tracemalloc.stop()


def test_an_index_of_many_masks_is_small(here: Path) -> None:
    JournalIndex(here / "out").close()  # what is made once
    with _traced() as traced:
        index = JournalIndex(here / "out")
    assert traced[0] < 25
    assert len(index) == COUNT
    assert index.wrote("ISIC_0004321.png")
    found = index.find("ISIC_0004321.png")
    assert found is not None
    assert found[0]["image"] == "ISIC_0004321.jpg"
    assert not index.wrote("ISIC_0004321.jpg")
    index.close()


_LOOK = """
import tracemalloc
from isicrt.engine import names
from isicrt.engine.ledger import Ledger
from isicrt.engine.sources import find_jobs

names._LATEST = 100
jobs = find_jobs("list.txt", "out")
Ledger("out", jobs, model={}, settings={}).close()
tracemalloc.start()
ledger = Ledger("out", jobs, model={}, settings={})
print(tracemalloc.get_traced_memory()[1])
ledger.close()
"""


def test_a_look_at_many_masks_takes_little(here: Path) -> None:
    """In a process of its own: the interpreter's table of names grows by a multiple of what other tests left in it."""
    run = subprocess.run([sys.executable, "-c", _LOOK], cwd=here, check=True, capture_output=True, text=True)
    # 50 are a buffer for reading, and that table may grow by 100; a set of names takes 400.
    assert int(run.stdout) / COUNT < 250


@pytest.mark.parametrize("collide", [False, True])
def test_only_a_file_at_the_place_of_a_mask_is_in_the_way(
    tmp_path: Path, collide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names in a folder are known by their hashes, which another name may have."""
    if collide:
        monkeypatch.setattr(names, "key_hash", lambda key: 7)
    monkeypatch.chdir(tmp_path)
    Path("list.txt").write_text("in/a.jpg\nin/b.jpg\n")
    Path("out").mkdir()
    Path("out/other.png").touch()
    jobs = find_jobs("list.txt", "out")
    Ledger("out", jobs, model={}, settings={}).close()
    Path("out/b.png").touch()
    with pytest.raises(DataError, match=r"1 files stand where masks go(.|\n)*\n  out/b.png\n"):
        Ledger("out", jobs, model={}, settings={})
