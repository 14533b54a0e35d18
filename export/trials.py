"""Trial runs of what was built: the ONNX file at several batch sizes, the plan on this machine's GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from isicrt.engine import tensorrt_api
from isicrt.engine.card import ModelCard
from isicrt.engine.errors import BuildError, MissingDependencyError, ModelError, OtherGpuError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.plan import write_plan
from isicrt.engine.rebuild import targets
from isicrt.engine.tensorrt_runtime import TensorRtRuntime
from isicrt.export.model_folder import trial_file, writing
from isicrt.export.parity import Compute, Levels, Parity, Sample, measure_parity, require_parity


def check_batches(path: Path, sizes: Sequence[int]) -> None:
    """Run an ONNX file at several batch sizes and compare first and last image with a batch of one.

    Raises:
        BuildError: a size fails, or an image's result depends on its neighbours by more than one level of 255.
    """
    with OnnxRuntime(path) as runtime:
        h, w = runtime.card.input_size
        rng = np.random.default_rng(0)
        for size in sizes:
            images = rng.integers(0, 256, (size, h, w, 3), dtype=np.uint8)
            try:
                batch = runtime.infer(images)
            except Exception as error:  # ONNX Runtime's exceptions have no common root
                raise BuildError(f"the exported ONNX file fails at a batch of {size}: {error}") from error
            for index in {0, size - 1}:
                alone = runtime.infer(images[index : index + 1])[0]
                if np.abs(alone.astype(int) - batch[index]).max() > 1:
                    raise BuildError(f"the exported ONNX file mixes the images of a batch of {size}")


def plan_parity(
    card: ModelCard,
    plan: bytes,
    reference: tuple[str, Compute],
    samples: Sequence[Sample],
    images: str,
    out: Path,
) -> tuple[Parity | None, str]:
    """Parity of the plan on this machine's GPU; or None, and why it was not run.

    A plan of TensorRT for RTX may be for other GPUs than this machine's, and is kept where it is refused for that. One
    of `tensorrt` is for this very GPU.

    Raises:
        BuildError: it runs and does not agree, or it does not load or run for any other reason.
    """
    with trial_file(out, "trial.plan") as path:
        with writing(path):
            write_plan(path, card, plan)
        try:
            runtime = TensorRtRuntime(path)
        except MissingDependencyError as error:
            return None, f"The plan was built but not run: {error}"
        except ModelError as error:
            if isinstance(error, OtherGpuError) and not _is_for_this_gpu(card):
                return None, f"The plan was built but not run, it is for other GPUs: {_without_path(error, path)}"
            raise BuildError(f"the plan was built but does not load: {_without_path(error, path)}") from error
        try:
            with runtime:
                largest = runtime.max_batch or 1

                def levels(batch: UInt8Array) -> Levels:
                    parts = [runtime.infer(batch[i : i + largest]) for i in range(0, len(batch), largest)]
                    return np.concatenate(parts).astype(np.float32)

                candidate = (f"the plan on {runtime.name}", levels)
                parity = measure_parity(reference, candidate, samples, card, source=images)
        except ModelError as error:
            raise BuildError(f"the plan was built but does not run: {_without_path(error, path)}") from error
    require_parity(parity)
    return parity, ""


def _is_for_this_gpu(card: ModelCard) -> bool:
    """Whether a plan was built for the GPU that it was built beside, among others or alone."""
    flavour = card.builder["flavour"]
    if flavour == "tensorrt":
        return True
    return card.builder["compute_capability"] in targets(tensorrt_api.load(flavour), card.builder)


def _without_path(error: ModelError, path: Path) -> str:
    """What is said of the trial's file, which is gone when it is read: without its name and how to build it again."""
    return str(error).removeprefix(f"{path}: ").split(" Build it again")[0]
