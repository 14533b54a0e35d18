"""The official ISIC 2016 Task 1 archives: fetched resumably, checked, unpacked into the four official folders.

A transfer that breaks is continued where it stopped, in this run or in the next. What is in the way of that (a server
without ranges, a file that changed meanwhile) costs a new transfer, never a wrong file: an archive's MD5 decides.
A folder appears under its own name only when it is whole.
"""

from __future__ import annotations

import hashlib
import http.client
import io
import re
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from isicrt._version import __version__
from isicrt.engine.errors import DataError


@dataclass(frozen=True)
class Archive:
    """One zip file of a data set: a single folder of `ISIC_*` files.

    Args:
        folder: the folder that it unpacks to; the zip's own name is this with `.zip`.
        url: where it lies.
        md5: of the zip, 32 hexadecimal digits.
        files: how many `ISIC_*` files are in it.
    """

    folder: str
    url: str
    md5: str
    files: int


_SITE = "https://isic-challenge-data.s3.amazonaws.com/2016"
_PREFIX = "ISBI2016_ISIC_Part1"

#: Task 1 of ISIC 2016, CC-0: 900 training and 379 test images with their masks.
ISIC2016: tuple[Archive, ...] = tuple(
    Archive(f"{_PREFIX}_{part}", f"{_SITE}/{_PREFIX}_{part}.zip", md5, files)
    for part, md5, files in (
        ("Training_Data", "2029f387e62dcc062b1370b1efc1f7fb", 900),
        ("Training_GroundTruth", "fbd77134298f3511479a37bac93109c7", 900),
        ("Test_Data", "efebcaeaae751007401a40a60d391f93", 379),
        ("Test_GroundTruth", "492a7711a2e19b96114cab6c96bd1ad5", 379),
    )
)

#: (folder, bytes here so far, bytes in all or None while unknown)
Progress = Callable[[str, int, int | None], None]

_CHUNK = 1 << 18
_LARGEST_UNPACKED = 4 << 30  # bytes; the official training images are under 1 GiB
_MOST_MEMBERS = 10_000


def install_archives(
    out: Path,
    archives: Sequence[Archive],
    *,
    keep_zips: bool = False,
    on_progress: Progress | None = None,
    retry_pause_s: float = 1.0,
) -> list[Path]:
    """Bring every archive's folder into `out`. What is there and whole is left alone.

    A zip that somebody put into `out` under its official name is checked and used, and never removed.

    Args:
        out: made if need be.
        archives: what to bring.
        keep_zips: leave the downloaded zips in `out`.
        on_progress: called at the start and after each piece of a transfer.
        retry_pause_s: seconds before the first retry of a broken transfer; later ones wait longer.

    Returns:
        The folders, in the order of `archives`.

    Raises:
        DataError: no network, no space, a wrong MD5, an archive that is not what it should be, a folder in the way.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot make this folder: {error.strerror or error}") from error
    return [_install(archive, out, keep_zips, on_progress, retry_pause_s) for archive in archives]


def _install(archive: Archive, out: Path, keep_zips: bool, on_progress: Progress | None, pause_s: float) -> Path:
    folder = out / archive.folder
    if folder.is_dir():
        found = _count(folder)
        if found != archive.files:
            raise DataError(
                f"{folder}: has {found} ISIC files and the official folder has {archive.files}. "
                f"Move it away or delete it, and run the command again"
            )
        return folder
    own = out / f"{archive.folder}.zip"
    if own.is_file():
        found_md5 = _md5(own)
        if found_md5 != archive.md5:
            raise DataError(
                f"{own}: its MD5 is {found_md5} and not {archive.md5}, so it is damaged or another file. "
                f"Move it away or delete it, and run the command again"
            )
        unpack(own, folder, archive.files)
        return folder
    part = own.with_name(own.name + ".part")
    _fetch_checked(archive, part, on_progress, pause_s)
    unpack(part, folder, archive.files)
    if keep_zips:
        part.replace(own)
    else:
        part.unlink()
    return folder


def _fetch_checked(archive: Archive, part: Path, on_progress: Progress | None, pause_s: float) -> None:
    """Make `part` the archive's bytes, as its MD5 says."""

    def report(done: int, total: int | None) -> None:
        if on_progress is not None:
            on_progress(archive.folder, done, total)

    continued = _size(part) > 0
    if continued and _md5(part) == archive.md5:
        return  # an earlier run was stopped between transfer and unpacking
    fetch(archive.url, part, on_bytes=report, pause_s=pause_s)
    found = _md5(part)
    if found != archive.md5 and continued:
        # The piece from the earlier run may have been of another version, or damaged: start from nothing, once.
        part.unlink()
        fetch(archive.url, part, on_bytes=report, pause_s=pause_s)
        found = _md5(part)
    if found != archive.md5:
        rejected = part.with_suffix(".rejected")
        part.replace(rejected)
        raise DataError(
            f"{archive.url}: the MD5 of what came is {found} and not {archive.md5}. It was set aside as {rejected}. "
            f"Run the command again for a new transfer. If the same MD5 comes back, the file was changed at its "
            f"source: unpack it as {part.parent / archive.folder} if you trust it"
        )


def fetch(
    url: str,
    part: Path,
    *,
    on_bytes: Callable[[int, int | None], None] | None = None,
    attempts: int = 4,
    pause_s: float = 1.0,
    timeout_s: float = 30.0,
) -> None:
    """Make `part` the whole file at `url`, continuing after the bytes that it has.

    Args:
        url: http or https. Proxies are taken from the environment.
        part: appended to; kept when the transfer breaks.
        on_bytes: called with the bytes in `part` and the bytes in all (None: the server does not say).
        attempts: connections in a row that bring nothing new before it is given up.
        pause_s: seconds before the first retry; the n-th waits n times as long.
        timeout_s: seconds of silence that break a connection.

    Raises:
        DataError: with the reason, and what to do.
    """
    fruitless, furthest = 0, _size(part)
    while True:
        try:
            if _transfer(url, part, on_bytes, timeout_s):
                return
            reason = "the connection was closed early"
        except urllib.error.HTTPError as error:
            reason = f"HTTP {error.code} {error.reason}"
            error.close()
            if error.code < 500 and error.code not in (408, 429):
                raise DataError(f"{url}: {reason}. {_by_hand(part)}") from error
        except urllib.error.URLError as error:
            reason = str(error.reason)
        except (http.client.HTTPException, OSError) as error:  # the disk's own errors are DataError by now
            reason = str(error) or type(error).__name__
        size = _size(part)
        fruitless = 0 if size > furthest else fruitless + 1
        furthest = max(furthest, size)
        if fruitless >= attempts:
            raise DataError(
                f"{url}: cannot be fetched: {reason}. Check the network and run the command again: "
                f"it continues after the {size / 1e6:.1f} MB in {part}. {_by_hand(part)}"
            )
        time.sleep(pause_s * fruitless)


def _by_hand(part: Path) -> str:
    return f"You can also get the file another way: put it at {part.with_suffix('')} and run the command again"


def _transfer(url: str, part: Path, on_bytes: Callable[[int, int | None], None] | None, timeout_s: float) -> bool:
    """One connection. True: `part` is whole, as far as the server tells."""
    start = _size(part)
    headers = {"User-Agent": f"isicrt/{__version__}"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout_s)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not start:
            raise
        error.close()
        # Nothing after our last byte: we have it all, or something that was never this file.
        if _number(r"bytes \*/(\d+)", error.headers.get("Content-Range")) == start:
            return True
        part.unlink()
        return False
    with response:
        if response.status == 206:
            if _number(r"bytes (\d+)-", response.headers.get("Content-Range")) != start:
                part.unlink()
                return False
            total = _number(r"bytes \d+-\d+/(\d+)", response.headers.get("Content-Range"))
        else:  # the whole file: the server knows no ranges
            start = 0
            total = _number(r"(\d+)", response.headers.get("Content-Length"))
        _require_space(part.parent, (total or 0) - start)
        if on_bytes is not None:
            on_bytes(start, total)
        done = start
        try:
            # Unbuffered, so that a full disk shows at a write and not when the file is closed.
            sink = io.FileIO(part, "a" if start else "w")
        except OSError as error:
            raise _unwritable(part, error) from error
        with sink:
            while chunk := response.read(_CHUNK):
                try:
                    rest = memoryview(chunk)
                    while rest:
                        rest = rest[sink.write(rest) :]
                except OSError as error:
                    raise _unwritable(part, error) from error
                done += len(chunk)
                if on_bytes is not None:
                    on_bytes(done, total)
    return total is None or done == total


def _unwritable(part: Path, error: OSError) -> DataError:
    return DataError(
        f"{part}: cannot be written: {error.strerror or error}. "
        f"Put that right and run the command again: it continues where it stopped"
    )


def unpack(archive: Path, folder: Path, files: int) -> None:
    """Unpack a zip of one flat folder as `folder`, which appears only when it is whole.

    Args:
        archive: the zip. Its members are regular files, bare or below one folder named like `folder`.
        folder: must not exist.
        files: how many `ISIC_*` files there must be.

    Raises:
        DataError: not a zip; a member that would land elsewhere, is a link, or is too large; too few files; no space.
    """
    scratch = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    try:
        with zipfile.ZipFile(archive) as zipped:
            members = _members(zipped, archive, folder.name)
            _require_space(folder.parent, sum(member.file_size for member in members.values()))
            scratch.mkdir()
            for name, member in members.items():
                with zipped.open(member) as source, open(scratch / name, "xb") as target:
                    shutil.copyfileobj(source, target, _CHUNK)
        found = _count(scratch)
        if found != files:
            raise DataError(f"{archive}: has {found} ISIC files and the official archive has {files}")
        scratch.rename(folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{archive}: cannot be unpacked: {error}. Delete it and run the command again") from error
    except OSError as error:
        raise DataError(f"{folder}: cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _members(zipped: zipfile.ZipFile, archive: Path, folder: str) -> dict[str, zipfile.ZipInfo]:
    """File name -> member, for every member that is a file; what a Mac's zip adds is passed over."""
    infos = zipped.infolist()
    if len(infos) > _MOST_MEMBERS or sum(info.file_size for info in infos) > _LARGEST_UNPACKED:
        raise DataError(
            f"{archive}: claims to hold {len(infos)} members of {sum(info.file_size for info in infos)} bytes; "
            f"more than {_MOST_MEMBERS} or {_LARGEST_UNPACKED} are not unpacked"
        )
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        if info.filename.startswith("__MACOSX/") or PurePosixPath(info.filename).name == ".DS_Store":
            continue
        kind = stat.S_IFMT(info.external_attr >> 16)
        if info.filename and info.is_dir() and kind in (0, stat.S_IFDIR):  # of no name, is_dir raises an IndexError
            continue
        parts = PurePosixPath(info.filename).parts
        name = parts[-1] if parts else ""
        if (
            kind not in (0, stat.S_IFREG)
            or parts not in ((name,), (folder, name))
            or name in ("", "..")
            or name in members
            or re.search(r'[\\/:*?"<>|\x00-\x1f]', name)
        ):
            raise DataError(
                f"{archive}: member {info.filename!r} is not a plain file of one folder. Nothing was unpacked"
            )
        members[name] = info
    return members


def _require_space(folder: Path, need: int) -> None:
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return  # unknown; a write will tell
    if need > free:
        raise DataError(
            f"{folder}: no space: {need / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free. "
            f"Make room and run the command again: it continues where it stopped"
        )


def _count(folder: Path) -> int:
    return sum(1 for _ in folder.glob("ISIC_*"))


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with open(path, "rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def _number(pattern: str, header: str | None) -> int | None:
    """The number that `pattern` captures at the start of a header."""
    found = re.match(pattern, header or "")
    return int(found.group(1)) if found else None
