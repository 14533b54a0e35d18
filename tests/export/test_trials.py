"""What a build does with a plan that its machine cannot run, on a stand-in for TensorRT for RTX."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from isicrt.engine.cuda_driver import Gpu
from isicrt.engine.errors import BuildError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.onnx_file import read_onnx_card
from isicrt.export import trials
from isicrt.export.parity import OnnxLevels, Parity, Sample
from isicrt.export.trials import plan_parity
from tests.engine import host_tensorrt
from tests.engine.host_tensorrt import VERSION, HostTensorRt
from tests.engine.stand_ins import OnnxContext, memory_at


@pytest.fixture
def host(darkness_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HostTensorRt:
    host = HostTensorRt(darkness_onnx)
    host.install(monkeypatch, tmp_path / "cache")
    return host


def _try(
    onnx_file: Path,
    out: Path,
    flavour: str = "tensorrt-rtx",
    *,
    images: int = 1,
    pixels: UInt8Array | None = None,
    **changes: object,
) -> tuple[Parity | None, str]:
    import onnx

    builder = {"flavour": flavour, "version": VERSION, "source": "best.pt", "profile": [1, 4, 8]}
    builder |= {"gpu": "host", "compute_capability": "8.9"}
    card = read_onnx_card(onnx_file).replace(builder=builder | changes)
    if pixels is None:
        pixels = np.random.default_rng(0).integers(0, 256, (images, 64, 64, 3), dtype=np.uint8)
    samples = [Sample("noise", image) for image in pixels]
    reference = ("the ONNX file", OnnxLevels(onnx.load(onnx_file)))
    return plan_parity(card, b"plan", reference, samples, "noise", out)


@contextmanager
def _broken(host: HostTensorRt, how: str) -> Iterator[None]:
    make: Any = host._context

    def context(config: Any = None) -> OnnxContext:
        made: OnnxContext = make(config)
        setattr(made, how, True)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host, "_context", context)
        yield


def test_a_plan_that_runs_is_compared(host: HostTensorRt, darkness_onnx: Path, tmp_path: Path) -> None:
    parity, note = _try(darkness_onnx, tmp_path)
    assert parity is not None
    assert (parity.candidate, parity.disagreement_max, note) == ("the plan on tensorrt-rtx-fp32", 0.0, "")
    assert host.device.allocated == 0


@pytest.mark.parametrize(
    ("targets", "here", "said"),
    [
        ([], "9.0", "8.0, 8.6, 8.9, 12.0, 12.1"),  # TensorRT for RTX does not know it
        ([], "7.5", "8.0, 8.6, 8.9, 12.0, 12.1"),  # it does, but builds for it only where it is told to
        (["8.6", "8.9"], "8.0", "8.6, 8.9"),
    ],
)
def test_a_plan_for_other_gpus_is_kept(
    host: HostTensorRt, darkness_onnx: Path, tmp_path: Path, targets: list[str], here: str, said: str
) -> None:
    host.invalid = 2
    host.device.gpu = Gpu("NVIDIA X", here, "13.0")  # type: ignore[assignment]
    parity, note = _try(darkness_onnx, tmp_path, compute_capabilities=targets, compute_capability=here)
    assert parity is None
    assert note == (
        f"The plan was built but not run, it is for other GPUs: built for compute capability {said}; this GPU is "
        f"NVIDIA X ({here}), where TensorRT for RTX {VERSION} does not run it (UNSUPPORTED_CC)."
    )
    assert host.device.allocated == 0


@pytest.mark.parametrize("targets", [[], ["current"], ["8.6", "8.9"]])
def test_a_plan_for_this_gpu_among_others_has_to_load_here(
    host: HostTensorRt, darkness_onnx: Path, tmp_path: Path, targets: list[str]
) -> None:
    host.invalid = 2
    with pytest.raises(BuildError, match=r"the plan was built but does not load: built for .* \(UNSUPPORTED_CC\)\.$"):
        _try(darkness_onnx, tmp_path, compute_capabilities=targets)


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])  # the stand-in behaves as that of RTX
@pytest.mark.parametrize("targets", [[], ["8.6"]])
def test_any_other_refusal_fails_the_build(
    host: HostTensorRt, darkness_onnx: Path, tmp_path: Path, flavour: str, targets: list[str]
) -> None:
    for how in ("refuses", "fails"):
        with (
            _broken(host, how),
            pytest.raises(
                BuildError, match=r"does not run: .*could not .*[^.]\. Nothing was written\. Try a smaller --batch-size"
            ),
        ):
            _try(darkness_onnx, tmp_path, flavour, compute_capabilities=targets)
    host.loads = False
    with pytest.raises(BuildError, match=r"the plan was built but does not load: TensorRT.* cannot load it\.$"):
        _try(darkness_onnx, tmp_path, flavour, compute_capabilities=targets)
    assert host.device.allocated == 0


def test_parity_is_asked_of_a_plan_of_either_flavour(
    host: HostTensorRt, darkness_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = OnnxContext._compute

    def wrong(context: OnnxContext, shape: tuple[int, ...]) -> None:
        real(context, shape)
        memory_at(context._addresses["probability"], shape[:3])[:] ^= 0xFF

    monkeypatch.setattr(OnnxContext, "_compute", wrong)
    with pytest.raises(BuildError, match="differ"):
        _try(darkness_onnx, tmp_path)


@pytest.mark.parametrize("flavour", ["tensorrt-rtx", "tensorrt"])
@pytest.mark.parametrize(
    ("how", "message"),
    [
        (
            "refuses",
            r"the plan was built but does not run: .*could not run a batch of 8\. Nothing was written\. "
            r"Try a smaller --batch-size\.$",
        ),
        ("loses a row", r"gives other masks in a full batch of 8 than in small ones: .* of image 8 of the batch"),
        ("loses a row later", r"gives other masks in a full batch of 8 than in small ones: .* of image 8 of the batch"),
        ("has an old row", r"gives other masks in a full batch of 8 than in small ones: .* of image 8 of the batch"),
    ],
)
def test_the_batch_that_a_run_uses_has_to_give_the_masks_of_small_ones(
    host: HostTensorRt,
    darkness_onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flavour: str,
    how: str,
    message: str,
) -> None:
    """The parity run has batches of 1 and 3 here, and a CUDA graph comes with the second full one."""
    if flavour == "tensorrt":
        host.be_plain(monkeypatch)
    execute, compute, full, old = OnnxContext.execute_async_v3, OnnxContext._compute, [0], []

    def executes(context: OnnxContext, handle: int) -> bool:
        return not (how == "refuses" and context.shape[0] == 8) and execute(context, handle)

    def computes(context: OnnxContext, shape: tuple[int, ...]) -> None:
        compute(context, shape)
        if shape[0] != 8:
            return
        full[0] += 1
        found = memory_at(context._addresses["probability"], shape[:3])
        if how == "loses a row" or (how == "loses a row later" and full[0] > 6):
            found[-1] = 0
        elif how == "has an old row":
            old.append(found[-1].copy())
            found[-1] = old[0]

    monkeypatch.setattr(OnnxContext, "execute_async_v3", executes)
    monkeypatch.setattr(OnnxContext, "_compute", computes)
    with pytest.raises(BuildError, match=message):
        _try(darkness_onnx, tmp_path, flavour, images=4)
    assert host.device.allocated == 0


@pytest.mark.parametrize(("images", "largest"), [(1, 8), (2, 8), (3, 8), (4, 8), (6, 8), (12, 8), (1, 3), (6, 3)])
def test_what_a_context_had_before_shows_however_few_the_images_are(
    host: HostTensorRt,
    darkness_onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    images: int,
    largest: int,
) -> None:
    """Here a context's later full batches give what its first gave."""
    host.be_plain(monkeypatch)
    monkeypatch.setattr(host_tensorrt, "LARGEST", largest)
    compute, first = OnnxContext._compute, dict[int, UInt8Array]()

    def computes(context: OnnxContext, shape: tuple[int, ...]) -> None:
        compute(context, shape)
        found = memory_at(context._addresses["probability"], shape[:3])
        if shape[0] == largest:
            found[:] = first.setdefault(id(context), found.copy())

    monkeypatch.setattr(OnnxContext, "_compute", computes)
    with pytest.raises(BuildError, match=f"gives other masks in a full batch of {largest} than in small ones"):
        _try(darkness_onnx, tmp_path, "tensorrt", images=images, profile=[1, 2, largest])


def test_an_image_that_the_plan_gets_wrong_lets_no_lost_lesion_pass(
    host: HostTensorRt, darkness_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plan is compared with itself: where it is far from the reference, it is not for that in full batches."""
    monkeypatch.setattr(host_tensorrt, "LARGEST", 64)
    pixels = np.full((40, 64, 64, 3), 230, np.uint8)
    pixels[:, 20:45, 20:45] = 20  # 15 % of the image
    pixels[7] = 220
    compute = OnnxContext._compute

    def computes(context: OnnxContext, shape: tuple[int, ...]) -> None:
        compute(context, shape)
        found = memory_at(context._addresses["probability"], shape[:3])
        found[memory_at(context._addresses["image"], shape)[:, 0, 0, 0] == 220, :10] = 255
        if shape[0] == 64:
            found[-1] = 0

    monkeypatch.setattr(OnnxContext, "_compute", computes)
    with pytest.raises(BuildError, match=r": 15\.26% of the pixels of image 64 of the batch differ \(limit 2\.0%\)"):
        _try(darkness_onnx, tmp_path, pixels=pixels, profile=[1, 64, 64])


@pytest.mark.parametrize(
    ("differs", "passes"), [(lambda row: row == 0, False), (lambda row: False, True)], ids=["place", "image"]
)
def test_the_mean_is_that_of_all_images(
    host: HostTensorRt,
    darkness_onnx: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    differs: Callable[[int], bool],
    passes: bool,
) -> None:
    """One image differs by 1.1 %, which is 0.55 % of the batches of two that it is in; or a place of the batch does."""
    monkeypatch.setattr(host_tensorrt, "LARGEST", 2)
    pixels = np.random.default_rng(0).integers(0, 255, (10, 64, 64, 3), dtype=np.uint8)
    pixels[3, 0, 0, 0] = 255
    compute, small = OnnxContext._compute, [0]

    def computes(context: OnnxContext, shape: tuple[int, ...]) -> None:
        compute(context, shape)
        small[0] += shape[0] == 1
        if shape[0] == 1 or small[0] < 12:  # before: parity and what each image gives alone
            return
        found = memory_at(context._addresses["probability"], shape[:3])
        images = memory_at(context._addresses["image"], shape)
        for row in range(2):
            if images[row, 0, 0, 0] == 255 or differs(row):
                found[row].ravel()[:45] ^= 0xFF

    monkeypatch.setattr(OnnxContext, "_compute", computes)
    if passes:
        assert _try(darkness_onnx, tmp_path, pixels=pixels, profile=[1, 2, 2])[0] is not None
        assert small[0] >= 12
        return
    with pytest.raises(BuildError, match=r": 0\.\d+% of the pixels in the mean differ \(limit 0\.5%\)"):
        _try(darkness_onnx, tmp_path, pixels=pixels, profile=[1, 2, 2])


def test_each_context_runs_full_batches_until_they_are_graphs(
    host: HostTensorRt, darkness_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.be_plain(monkeypatch)
    assert _try(darkness_onnx, tmp_path, "tensorrt", images=2)[0] is not None
    assert host.device.log.count("record execute") == 3
    assert host.device.log.count("launch") == 6


def test_an_error_that_is_not_the_plans_is_not_taken_for_it(
    host: HostTensorRt, darkness_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("the reference")

    monkeypatch.setattr(OnnxLevels, "__call__", fail)
    with pytest.raises(ZeroDivisionError, match="the reference"):
        _try(darkness_onnx, tmp_path)
    assert host.device.allocated == 0


def test_a_folder_that_is_full_is_an_error_that_names_the_file(
    host: HostTensorRt, darkness_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(trials, "write_plan", fail)
    with pytest.raises(BuildError, match=r"trial\.plan: cannot be written: No space left on device"):
        _try(darkness_onnx, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
