"""A checkpoint as a runtime, by torch on a GPU: for scoring where the models are trained, without an export."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from isicrt.engine.card import ModelCard
from isicrt.engine.errors import ModelError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.runtime import check_batch
from isicrt.export.onnx_export import Deployed
from isicrt.trainer.checkpoint import load_model

GPU = "cuda"
"""Torch's name of the device."""


class TorchRuntime:
    """See `isicrt.engine.runtime.Runtime`. The network computes in float32, without TF32, as it does on a CPU.

    Args:
        path: a checkpoint.
        device: torch's name of it; None for `GPU`.

    Raises:
        ModelError: not a checkpoint, or the device has no room for it.
    """

    max_batch: int | None = None

    def __init__(self, path: str | os.PathLike[str], *, device: str | None = None) -> None:
        device = device or GPU
        digest = hashlib.sha256()
        network, card = load_model(Path(path), read=digest.update)
        self.digest = digest.hexdigest()
        self.card: ModelCard = card
        self.name = f"torch-{device}"
        self._path, self._device = path, device
        try:
            self._deployed: Deployed | None = Deployed(network, card).eval().to(device)
        except RuntimeError as error:
            raise ModelError(f"{path}: cannot be put on {device}: {error}") from error

    def infer(self, images: UInt8Array) -> UInt8Array:
        """See `Runtime.infer`."""
        if self._deployed is None:
            raise ModelError(f"{self._path}: the runtime is closed")
        check_batch(images, self.card, self.max_batch)
        with torch.inference_mode(), _float32():
            levels: UInt8Array = self._deployed(torch.tensor(images, device=self._device)).cpu().numpy()
        return levels

    def close(self) -> None:
        """See `Runtime.close`."""
        self._deployed = None

    def __enter__(self) -> TorchRuntime:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def _float32() -> Iterator[None]:
    """Without TF32, which rounds what is multiplied to 10 bits."""
    switches: Any = torch.backends.cudnn, torch.backends.cuda.matmul
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use the new API settings")  # some versions of torch, for reading too
        before = [switch.allow_tf32 for switch in switches]
        for switch in switches:
            switch.allow_tf32 = False
        try:
            yield
        finally:
            for switch, was in zip(switches, before, strict=True):
                switch.allow_tf32 = was
