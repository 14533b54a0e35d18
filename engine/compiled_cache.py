"""Networks as a runtime has compiled them, kept for the next process: to load one takes a fifth of compiling it.

A file is taken only as it was written: its own hash is in front of it, and its name is the hash of all that decided
what is in it. Whatever is wrong with the folder or a file, the network is compiled, as if there were no cache.
"""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from pathlib import Path

from isicrt.engine.cache_folder import cache_folder
from isicrt.engine.masks import replace_file

KEPT_FILES = 12
"""The oldest above so many are deleted; each is as large as the model's file."""
_DIGEST_BYTES = 32


class CompiledCache:
    """Of one kind of runtime.

    Args:
        name: of the folder, and of the variable that turns the cache off: ``ISICRT_COMPILED_CACHE=0``.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def folder(self) -> Path | None:
        """None where the user has turned it off or has no home. It need not exist."""
        if os.environ.get("ISICRT_COMPILED_CACHE") == "0":
            return None
        try:
            return cache_folder() / self._name
        except RuntimeError:
            return None

    def read(self, *key: object) -> bytes | None:
        """What `write` kept under this key; None where there is nothing, or something else."""
        if self.folder is None:
            return None
        path = self._path(self.folder, key)
        try:
            data = path.read_bytes()
            if hashlib.sha256(data[_DIGEST_BYTES:]).digest() != data[:_DIGEST_BYTES]:
                return None
        except OSError:
            return None
        with suppress(OSError):  # it may be somebody else's, as in a container's image
            os.utime(path)  # the latest that was used is the last to go
        return data[_DIGEST_BYTES:]

    def write(self, data: bytes, *key: object) -> None:
        """Keep `data`, as far as that can be done."""
        if self.folder is None:
            return
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            replace_file(self._path(self.folder, key), hashlib.sha256(data).digest() + data)
            files = sorted(self.folder.glob("*.bin"), key=lambda file: file.stat().st_mtime_ns)
            for file in files[:-KEPT_FILES]:
                file.unlink(missing_ok=True)

    @staticmethod
    def _path(folder: Path, key: tuple[object, ...]) -> Path:
        return folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:32]}.bin"
