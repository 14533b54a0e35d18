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
    their own: they have to give the same masks. Those graphs are of upload, network and download; that of the network
    alone, which a run records where it decodes on the GPU, is not tried.

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
                _check_full_batches(runtime, largest, samples)
        except ModelError as error:
            said = _with_remedy(_without_path(error, path), runtime.max_batch or 1, card.precision)
            raise BuildError(f"the plan was built but does not run: {said}") from error
    return parity, ""


def _check_full_batches(runtime: TensorRtRuntime, largest: int, samples: Sequence[Sample]) -> None:
    """Run the largest batch as a run does, with all contexts in flight, and compare each image with itself alone.

    Raises:
        BuildError: MAX_ROW_DISAGREEMENT of an image's pixels, or MAX_DISAGREEMENT of all, have another mask.
        ModelError: it does not run.
    """
    level, turns = cutoff(runtime.card.threshold), _TURNS * runtime.depth
    pool = _pool(samples, turns, largest)
    alone = np.concatenate([runtime.infer(image[None]) for image in pool]) >= level
    images = np.empty((largest, *pool[0].shape), np.uint8)
    differing: list[float] = []

    def batches() -> Iterator[tuple[int, UInt8Array]]:
        for turn in range(turns):
            for row in range(largest):  # another image in each place, so that what was left from before shows
                images[row] = pool[(row + turn) % len(pool)]
            yield turn, images

    for turn, probabilities in infer_batches(runtime, batches()):
        for row in range(largest):
            found, expected = probabilities[row] >= level, alone[(row + turn) % len(pool)]
            differing.append(float((found != expected).mean()))
            if differing[-1] > MAX_ROW_DISAGREEMENT:
                place = f"of image {row + 1} of the batch"
                raise _other_masks(runtime, largest, differing[-1], place, MAX_ROW_DISAGREEMENT)
    if (mean := float(np.mean(differing))) > MAX_DISAGREEMENT:
        raise _other_masks(runtime, largest, mean, "in the mean", MAX_DISAGREEMENT)


def _pool(samples: Sequence[Sample], turns: int, largest: int) -> list[UInt8Array]:
    """What is put into full batches: where there are fewer samples than turns, flipped ones too, else what a context
    had before could be what it has now."""
    pool = [sample.pixels for sample in samples[: largest + turns - 1]]
    if len(pool) >= turns:
        return pool
    flips = (slice(None), slice(None, None, -1))
    return [image[rows, columns] for rows in flips for columns in flips for image in pool]


def _other_masks(runtime: TensorRtRuntime, largest: int, share: float, which: str, limit: float) -> BuildError:
    return BuildError(
        f"the plan on {runtime.name} gives other masks in a full batch of {largest} than in small ones: {share:.2%} of "
        f"the pixels {which} differ (limit {limit:.1%}). Nothing was written.{_try(largest, runtime.card.precision)}"
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


def _with_remedy(problem: str, largest: int, precision: str) -> str:
    if "--batch-size" in problem:
        return problem
    return f"{problem.rstrip('.')}. Nothing was written.{_try(largest, precision)}"


def _try(largest: int, precision: str) -> str:
    """What a plan of such batches and such a precision leaves to try."""
    ways = ["a smaller --batch-size"] * (largest > 1) + ["--fp32"] * (precision != "fp32")
    return f" Try {', or '.join(ways)}." if ways else ""
