"""What the network says of an image into a mask file: the work of a write thread, or of a process in its place."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from isal import isal_zlib

from isicrt.engine.errors import IsicrtError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.gpu_batch import PackedMask
from isicrt.engine.masks import Mask, WindowMask, encode_png, replace_file, restore_window
from isicrt.engine.output import OutputError, OutputFolder, is_fatal, output_error
from isicrt.engine.second_look import confidence

Content = UInt8Array | PackedMask
"""A probability map, uint8 h x w at the network's size, or a mask as the GPU gives it."""


class Finished(NamedTuple):
    """How an image ended."""

    problem: str | None
    """None where its mask was written, and `then` had no problem with it."""
    lesion: float | None
    """Share of the pixels that the mask calls lesion, in [0, 1]; None where there is none."""
    size: int
    """Bytes of the file; 0 where there is none, as is `crc`."""
    crc: int
    """CRC-32 of the file."""
    restore_seconds: float
    write_seconds: float
    confidence: float | None = None
    """See `isicrt.engine.second_look.confidence`; None where there is no mask, or the GPU made it."""


@dataclass(frozen=True)
class Finishing:
    """How the masks of a run are finished. It can be sent to another process."""

    threshold: float
    """In (0, 1)."""
    keep_largest: bool
    fill_holes: bool
    mask_bits: int
    """1 or 8, see `encode_png`."""
    output: OutputFolder | None
    """Where masks lie; None where nobody watches over the folder."""
    centre_sigma: float = 0.0
    """See `restore_mask`, as for the other two of the clean-up."""

    def finish(
        self, path: Path, native_size: tuple[int, int], content: Content, then: Callable[[Mask], None] | None = None
    ) -> Finished:
        """Restore, encode and write a mask.

        Args:
            path: of the mask.
            native_size: (height, width) of the image.
            content: what the network says.
            then: called with the mask, bool, height x width, once it is written.

        Raises:
            OutputError: no mask can be written any more. Whatever else goes wrong is the image's `problem`.
        """
        started = time.perf_counter()
        restored = None
        lesion, size, crc, written = 0.0, 0, 0, False
        sure = problem = None
        try:
            mask = self.restore(content, native_size)
            if not isinstance(content, PackedMask):
                sure = confidence(content, self.threshold)
            lesion = mask.lesion
            restored = time.perf_counter()
            png = encode_png(mask, self.mask_bits)
            size, crc = len(png), isal_zlib.crc32(png)
            if self.output is not None:
                self.output.write(path, png)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                replace_file(path, png)
            written = True
            if then is not None:
                then(mask.whole())
        except OutputError:
            raise
        except IsicrtError as error:
            problem = str(error)
        except OSError as error:
            if is_fatal(error):
                raise output_error(path.parent, error) from error
            problem = f"{path}: {error.strerror or error}"
        except Exception as error:  # whatever it was, it was about this image: the others go on
            problem = f"{path}: {type(error).__name__}: {error}"
        ended = time.perf_counter()
        restored = ended if restored is None else restored
        seconds = restored - started, ended - restored
        if not written:
            return Finished(problem, None, 0, 0, *seconds)
        return Finished(problem, lesion, size, crc, *seconds, sure)

    def restore(self, content: Content, native_size: tuple[int, int]) -> WindowMask:
        """The finished mask."""
        if isinstance(content, PackedMask):
            return content.clean(
                keep_largest=self.keep_largest, fill_holes=self.fill_holes, centre_sigma=self.centre_sigma
            )
        return restore_window(
            content,
            native_size,
            threshold=self.threshold,
            keep_largest=self.keep_largest,
            fill_holes=self.fill_holes,
            centre_sigma=self.centre_sigma,
        )
