"""`trainer.download` against a server of this test's own on 127.0.0.1."""

from __future__ import annotations

import hashlib
import io
import re
import socket
import stat
import struct
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from isicrt.engine.errors import DataError
from isicrt.trainer.dataset import OFFICIAL_FOLDERS
from isicrt.trainer.download import ISIC2016, Archive, fetch, install_archives, unpack

IMAGES = {"ISIC_0000001.jpg": b"one" * 100, "ISIC_0000002.jpg": b"two" * 100}


class FileServer(ThreadingHTTPServer):
    """Serves one file at every address, as well or as badly as a test says."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.content = b""
        self.knows_ranges = True
        self.statuses: list[int] = []  # for the next requests, instead of the file
        self.cuts: list[int] = []  # the next bodies break off after so many bytes
        self.claimed_size: int | None = None
        self.asked: list[str | None] = []  # the Range header of each request

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/Set.zip"

    def archive(self, *, md5: str | None = None, files: int = 2) -> Archive:
        return Archive("Set", self.url, md5 or hashlib.md5(self.content).hexdigest(), files)


class _Answer(BaseHTTPRequestHandler):
    server: FileServer

    def do_GET(self) -> None:
        server, asked = self.server, self.headers.get("Range")
        server.asked.append(asked)
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and server.knows_ranges else 0
        size = len(server.content)
        if start >= size:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{size}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = server.content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Content-Length", str(server.claimed_size or len(body)))
        self.end_headers()
        self.wfile.write(body[: server.cuts.pop(0)] if server.cuts else body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members.items():
            file.writestr(zipfile.ZipInfo(name), content, compression)
    return buffer.getvalue()


CONTENT = zipped({f"Set/{name}": content for name, content in IMAGES.items()})
SIZE = len(CONTENT)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with FileServer() as running:
        running.content = CONTENT
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def install(server: FileServer, out: Path, *, keep_zips: bool = False) -> list[Path]:
    return install_archives(out, [server.archive()], keep_zips=keep_zips, retry_pause_s=0)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_official_archives_are_the_folders_that_the_data_set_is_read_from() -> None:
    assert [archive.folder for archive in ISIC2016] == [*OFFICIAL_FOLDERS["train"], *OFFICIAL_FOLDERS["test"]]
    assert [archive.files for archive in ISIC2016] == [900, 900, 379, 379]
    for archive in ISIC2016:
        assert archive.url.startswith("https://")
        assert archive.url.endswith(f"/2016/{archive.folder}.zip")
        assert re.fullmatch("[0-9a-f]{32}", archive.md5)


def test_a_folder_is_installed_with_nothing_beside_it_and_only_once(server: FileServer, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    out = tmp_path / "new" / "data"
    folders = install_archives(
        out, [server.archive()], on_progress=lambda folder, done, total: seen.append((folder, done, total))
    )
    assert folders == [out / "Set"]
    assert contents(out / "Set") == IMAGES
    assert [path.name for path in out.iterdir()] == ["Set"]
    assert seen[0] == ("Set", 0, SIZE)
    assert seen[-1] == ("Set", SIZE, SIZE)
    assert install(server, out) == folders
    assert server.asked == [None]


def test_keep_zips_leaves_the_zip(server: FileServer, tmp_path: Path) -> None:
    install(server, tmp_path, keep_zips=True)
    assert (tmp_path / "Set.zip").read_bytes() == CONTENT
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Set", "Set.zip"]


def test_a_zip_that_is_there_is_used_and_left(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "Set.zip").write_bytes(CONTENT)
    install(server, tmp_path)
    assert contents(tmp_path / "Set") == IMAGES
    assert (tmp_path / "Set.zip").read_bytes() == CONTENT
    assert server.asked == []


def test_a_zip_that_is_there_and_wrong_is_refused_and_left(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "Set.zip").write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match=r"Set\.zip: its MD5 is [0-9a-f]{32} and not [0-9a-f]{32}"):
        install(server, tmp_path)
    assert (tmp_path / "Set.zip").read_bytes() == CONTENT[:-1]
    assert not (tmp_path / "Set").exists()


def test_a_folder_with_the_wrong_number_of_files_is_refused_and_left(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "Set").mkdir()
    (tmp_path / "Set" / "ISIC_0000001.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match="has 1 ISIC files and the official folder has 2"):
        install(server, tmp_path)
    assert contents(tmp_path / "Set") == {"ISIC_0000001.jpg": b"mine"}
    assert server.asked == []


@pytest.mark.parametrize(
    ("left_over", "knows_ranges", "asked"),
    [
        pytest.param(b"", True, [None], id="empty"),
        pytest.param(CONTENT[:100], True, ["bytes=100-"], id="piece"),
        pytest.param(CONTENT[:100], False, ["bytes=100-"], id="piece, server without ranges"),
        pytest.param(CONTENT, True, [], id="whole"),
        pytest.param(b"?" * 100, True, ["bytes=100-", None], id="piece of another file"),
        pytest.param(b"?" * SIZE, True, [f"bytes={SIZE}-", None], id="another file of the same size"),
        pytest.param(CONTENT + b"?", True, [f"bytes={SIZE + 1}-", None], id="longer"),
    ],
)
def test_what_an_earlier_run_left_is_continued_or_replaced(
    left_over: bytes, knows_ranges: bool, asked: list[str | None], server: FileServer, tmp_path: Path
) -> None:
    server.knows_ranges = knows_ranges
    (tmp_path / "Set.zip.part").write_bytes(left_over)
    install(server, tmp_path)
    assert contents(tmp_path / "Set") == IMAGES
    assert server.asked == asked
    assert [path.name for path in tmp_path.iterdir()] == ["Set"]


def test_fetch_of_a_whole_file_transfers_nothing(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(CONTENT)
    fetch(server.url, tmp_path / "part")
    assert server.asked == [f"bytes={SIZE}-"]
    assert (tmp_path / "part").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("knows_ranges", "cuts", "asked"),
    [
        (True, [50, 80], [None, "bytes=50-", "bytes=130-"]),
        (False, [50], [None, "bytes=50-"]),
        (True, [50, 0, 0, 10, 0, 0], [None, *["bytes=50-"] * 3, *["bytes=60-"] * 3]),
    ],
)
def test_a_broken_transfer_is_continued(
    knows_ranges: bool, cuts: list[int], asked: list[str | None], server: FileServer, tmp_path: Path
) -> None:
    server.knows_ranges, server.cuts = knows_ranges, cuts
    install(server, tmp_path)
    assert contents(tmp_path / "Set") == IMAGES
    assert server.asked == asked


def test_a_transfer_that_stays_broken_is_given_up_and_continued_by_the_next_run(
    server: FileServer, tmp_path: Path
) -> None:
    server.cuts = [60, 0, 0, 0, 0]
    with pytest.raises(DataError, match=r"closed early.*run the command again: it continues after"):
        install(server, tmp_path)
    assert (tmp_path / "Set.zip.part").read_bytes() == CONTENT[:60]
    assert not server.cuts
    server.asked.clear()
    install(server, tmp_path)
    assert server.asked == ["bytes=60-"]
    assert contents(tmp_path / "Set") == IMAGES


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_a_wrong_md5_is_an_error_and_the_file_is_set_aside(
    knows_ranges: bool, server: FileServer, tmp_path: Path
) -> None:
    server.knows_ranges = knows_ranges
    with pytest.raises(DataError, match=r"the MD5 of what came is .* and not 0{32}. It was set aside as .*rejected"):
        install_archives(tmp_path, [server.archive(md5="0" * 32)])
    assert contents(tmp_path) == {"Set.zip.rejected": CONTENT}
    assert server.asked == [None]
    install(server, tmp_path)  # and is not in the way
    assert contents(tmp_path / "Set") == IMAGES


@pytest.mark.parametrize(
    ("statuses", "requests", "error"),
    [
        ([503, 429], 3, None),
        ([404], 1, "HTTP 404 Not Found"),
        ([403], 1, "HTTP 403 Forbidden"),
        ([500] * 4, 4, "HTTP 500 .*Check the network"),
    ],
)
def test_statuses(statuses: list[int], requests: int, error: str | None, server: FileServer, tmp_path: Path) -> None:
    server.statuses = statuses
    if error is None:
        install(server, tmp_path)
    else:
        with pytest.raises(DataError, match=error):
            install(server, tmp_path)
    assert len(server.asked) == requests


def test_no_server_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as bound:  # not listening
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}/Set.zip"
        with pytest.raises(DataError, match=r"refused.*Check the network.*put it at .*Set\.zip and run"):
            fetch(url, tmp_path / "Set.zip.part", pause_s=0)


def test_a_silent_server_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/Set.zip"
        with pytest.raises(DataError, match="timed out"):
            fetch(url, tmp_path / "Set.zip.part", attempts=2, pause_s=0, timeout_s=0.05)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, the disk that is always full")
def test_a_full_disk_says_so(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "Set.zip.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"Set\.zip\.part: cannot be written: No space left"):
        install(server, tmp_path)


def test_a_file_larger_than_the_free_space_is_not_begun(server: FileServer, tmp_path: Path) -> None:
    server.claimed_size = 1 << 60
    with pytest.raises(DataError, match="no space: 1152921504607 MB are needed"):
        install(server, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot make this folder"):
        install(server, tmp_path / "file" / "data")


@pytest.mark.parametrize(
    "members",
    [
        {"Set/": b"", **{f"Set/{name}": content for name, content in IMAGES.items()}},
        IMAGES,
        {**{f"Set/{n}": c for n, c in IMAGES.items()}, "__MACOSX/Set/._ISIC_0000001.jpg": b"", "Set/.DS_Store": b""},
    ],
    ids=["with a folder", "flat", "packed on a Mac"],
)
def test_the_ways_to_pack_a_folder(members: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped(members, zipfile.ZIP_DEFLATED))
    unpack(tmp_path / "a.zip", tmp_path / "Set", 2)
    assert contents(tmp_path / "Set") == IMAGES


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".Set.unpacking").mkdir()
    (tmp_path / ".Set.unpacking" / "ISIC_0000009.jpg").write_bytes(b"half")
    (tmp_path / "a.zip").write_bytes(CONTENT)
    unpack(tmp_path / "a.zip", tmp_path / "Set", 2)
    assert contents(tmp_path / "Set") == IMAGES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Set", "a.zip"]


def _with_mode(mode: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        info = zipfile.ZipInfo("Set/ISIC_0000001.jpg")
        info.create_system = 3  # Unix: the upper half of external_attr is the file's mode
        info.external_attr = (mode | 0o777) << 16
        file.writestr(info, "../../outside")
    return buffer.getvalue()


def _twice_the_same() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("Set/ISIC_0000001.jpg", b"1")
        file.writestr("ISIC_0000001.jpg", b"2")
    return buffer.getvalue()


def _claiming(sizes: int) -> bytes:
    """`CONTENT` whose directory says that each of its files unpacks to so many bytes."""
    forged = bytearray(CONTENT)
    for record in re.finditer(b"PK\x01\x02", CONTENT):
        struct.pack_into("<I", forged, record.start() + 24, sizes)
    return bytes(forged)


def _encrypted() -> bytes:
    forged = bytearray(CONTENT)
    for record, offset in [(b"PK\x03\x04", 6), (b"PK\x01\x02", 8)]:
        for found in re.finditer(record, CONTENT):
            forged[found.start() + offset] |= 1
    return bytes(forged)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: zipped({"../ISIC_0000001.jpg": b""}), "not a plain file of one folder"),
        (lambda: zipped({"Set/../../ISIC_0000001.jpg": b""}), "not a plain file of one folder"),
        (lambda: zipped({"/ISIC_0000001.jpg": b""}), "not a plain file of one folder"),
        (lambda: zipped({"Set/..": b""}), "not a plain file of one folder"),
        (lambda: zipped({"": b""}), "not a plain file of one folder"),
        (lambda: zipped({"Set\\ISIC_0000001.jpg": b""}), "not a plain file of one folder"),
        (lambda: zipped({"C:ISIC_0000001.jpg": b""}), "not a plain file of one folder"),
        (lambda: zipped({"Other/ISIC_0000001.jpg": b""}), "not a plain file of one folder"),
        (lambda: zipped({"Set/sub/ISIC_0000001.jpg": b""}), "not a plain file of one folder"),
        (lambda: _with_mode(stat.S_IFLNK), "not a plain file of one folder"),
        (lambda: _with_mode(stat.S_IFIFO), "not a plain file of one folder"),
        (_twice_the_same, "not a plain file of one folder"),
        (lambda: _claiming(0xFFFFFFF0), "claims to hold 2 members of 8589934560 bytes"),
        (lambda: zipped({f"ISIC_{n:07d}.jpg": b"" for n in range(10_001)}), "claims to hold 10001 members"),
        (lambda: _claiming(10), "cannot be unpacked"),
        (lambda: CONTENT.replace(b"twotwo", b"tootwo", 1), "cannot be unpacked: Bad CRC-32"),
        (_encrypted, "cannot be unpacked: .*encrypted"),
        (lambda: CONTENT[:-30], "cannot be unpacked: File is not a zip file"),
        (lambda: b"<html>", "cannot be unpacked: File is not a zip file"),
        (lambda: zipped({"Set/ISIC_0000001.jpg": b""}), "has 1 ISIC files and the official archive has 2"),
    ],
)
def test_an_archive_that_is_not_what_it_should_be_leaves_nothing(
    make: Callable[[], bytes], message: str, tmp_path: Path
) -> None:
    out = tmp_path / "a" / "b"
    out.mkdir(parents=True)
    (tmp_path / "evil.zip").write_bytes(make())
    with pytest.raises(DataError, match=message):
        unpack(tmp_path / "evil.zip", out / "Set", 2)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "evil.zip"]
