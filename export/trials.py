"""Trial runs of what was built: the ONNX file at several batch sizes, the plan on this machine's GPU."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from isicrt.engine import tensorrt_api
from isicrt.engine.card import ModelCard
from isicrt.engine.errors import BuildError, MissingDependencyError, ModelError, OtherGpuError
from isicrt.engine.geometry import UInt8Array, cutoff
from isicrt.engine.in_flight import infer_batches
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.plan import write_plan
from isicrt.engine.rebuild import targets
from isicrt.engine.tensorrt_runtime import TensorRtRuntime
from isicrt.export.model_folder import trial_file, writing
from isicrt.export.parity import (
    MAX_DISAGREEMENT,
    Compute,
    Levels,
    Parity,
    Sample,
    measure_parity,
    require_parity,
)

MAX_ROW_DISAGREEMENT = 4 * MAX_DISAGREEMENT
"""Of one image's pixels, between a full batch and the image alone. Other kernels round otherwise, by far less."""
_TURNS = 3
"""Of each context: a full batch is queued call by call, then recorded as a CUDA graph, then launched as that."""


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

    Parity is measured in small batches. What `isicrt segment` runs are full ones, which have kernels and CUDA graphs of
    their own: they have to give the same masks.

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
                require_parity(parity)
                _check_full_batches(runtime, largest, samples, max(MAX_ROW_DISAGREEMENT, 2 * parity.disagreement_max))
        except ModelError as error:
            raise BuildError(f"the plan was built but does not run: {_without_path(error, path)}") from error
    return parity, ""


def _check_full_batches(runtime: TensorRtRuntime, largest: int, samples: Sequence[Sample], limit: float) -> None:
    """Run the largest batch as a run does, with all contexts in flight, and compare each image with itself alone.

    Raises:
        BuildError: more than `limit` of an image's pixels, or MAX_DISAGREEMENT in the mean, have another mask.
        ModelError: it does not run.
    """
    level, samples = cutoff(runtime.card.threshold), samples[:largest]
    alone = np.concatenate([runtime.infer(sample.pixels[None]) for sample in samples]) >= level
    images = np.empty((largest, *samples[0].pixels.shape), np.uint8)

    def batches() -> Iterator[tuple[int, UInt8Array]]:
        for turn in range(_TURNS * runtime.depth):
            for row in range(largest):  # another image in each place, so that what was left from before shows
                images[row] = samples[(row + turn) % len(samples)].pixels
            yield turn, images

    for turn, probabilities in infer_batches(runtime, batches()):
        pairs = ((probabilities[row], alone[(row + turn) % len(samples)]) for row in range(largest))
        differing = np.array([((found >= level) != expected).mean() for found, expected in pairs])
        worst = int(differing.argmax())
        if differing[worst] > limit or differing.mean() > MAX_DISAGREEMENT:
            raise BuildError(
                f"the plan on {runtime.name} gives other masks in a full batch of {largest} than in small ones: "
                f"{differing.mean():.2%} of the pixels differ (limit {MAX_DISAGREEMENT:.1%}), and "
                f"{differing[worst]:.2%} of image {worst + 1} of the batch (limit {limit:.1%}). Nothing was written. "
                "Try another --batch-size, or --fp32."
            )


def _is_for_this_gpu(card: ModelCard) -> bool:
    """Whether a plan was built for the GPU that it was built beside, among others or alone."""
    flavour = card.builder["flavour"]
    if flavour == "tensorrt":
        return True
    return card.builder["compute_capability"] in targets(tensorrt_api.load(flavour), card.builder)


def _without_path(error: ModelError, path: Path) -> str:
    """What is said of the trial's file, which is gone when it is read: without its name and how to build it again."""
    return str(error).removeprefix(f"{path}: ").split(" Build it again")[0]
