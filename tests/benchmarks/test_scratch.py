"""Folders that timed runs write into."""

from pathlib import Path

from isicrt.benchmarks.scratch import fresh


def test_a_fresh_folder_is_empty_and_what_was_there_keeps_its_inode(tmp_path: Path) -> None:
    inodes = []
    for run in range(3):
        out = fresh(tmp_path / "masks")
        assert list(out.iterdir()) == []
        (out / "a.png").write_text(str(run), encoding="utf-8")
        inodes.append((out / "a.png").stat().st_ino)
    kept = {path.stat().st_ino: path.read_text(encoding="utf-8") for path in tmp_path.rglob("a.png")}
    assert kept == dict(zip(inodes, ("0", "1", "2"), strict=True))


def test_a_folder_that_nobody_wrote_into_is_made(tmp_path: Path) -> None:
    assert fresh(tmp_path / "masks").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["masks"]
