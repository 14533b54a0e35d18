"""Training on a GPU: whole runs on rendered images, as on the CPU. Skipped with a reason where there is no GPU."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from isicrt.export.torch_runtime import TorchRuntime
from isicrt.trainer import checkpoint
from isicrt.trainer.cache import ResizedPairs
from isicrt.trainer.features import FeatureBatches
from isicrt.trainer.late_losses import LateLosses
from isicrt.trainer.loop import Listener, RunSettings, train
from isicrt.trainer.recipe import Recipe, Stage, load_recipe
from isicrt.trainer.still_batches import StillPairs

STAGES = (Stage("frozen", 1, 2e-3, warmup_epochs=0), Stage("tuned", 2, 2e-3, 1e-3))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return str(request.param)


def settings(data: Path, out: Path, device: str, *, cache: bool = True, **changes: Any) -> RunSettings:
    recipe: dict[str, Any] = {
        "name": "tiny",
        "architecture": "unet",
        "decoder_channels": (8, 8, 8, 8),
        "input_size": 64,
        "batch_size": 4,
        "folds": 3,
        "stages": STAGES,
        "augmentation": None,
    }
    return RunSettings(Recipe(**(recipe | changes)), (data,), out, device=device, cache=cache, pretrained=None)


class Losses(Listener):
    """Counts batches; Ctrl-C after an epoch, if asked for."""

    def __init__(self, stop: int = 0) -> None:
        self.stop, self.values = stop, list[float]()

    def stepped(self, epoch: int, images: int, loss: float) -> None:
        self.values.append(loss)

    def finished(self, row: Any) -> None:
        if row["epoch"] == self.stop:
            raise KeyboardInterrupt


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("kind", ["report", "default"])
def test_a_run_stops_goes_on_and_is_scored(
    rendered_pairs: Path, tmp_path: Path, device: str, kind: str, cache: bool
) -> None:
    """Without the cache DALI decodes on the device; ``default`` is the augmentation and average of the recipe that is
    the default, ``report`` the frozen features and the plain batches of the report's."""
    if kind == "default" or not cache:
        pytest.importorskip("nvidia.dali", reason="NVIDIA DALI is not installed")
    shipped = load_recipe("unet-light")
    names = ("augmentation", "ema_decay", "standardise", "loss")
    changes = {name: getattr(shipped, name) for name in names} | {"mixstyle": 0.5} if kind == "default" else {}
    given = settings(rendered_pairs, tmp_path / "run", device, cache=cache, **changes)
    before = torch.backends.cudnn.benchmark
    first, second = Losses(stop=2), Losses()
    with pytest.raises(KeyboardInterrupt):
        train(given, first)
    saved = len(checkpoint.load(given.out / checkpoint.LAST)[1]["history"])  # epochs as short as these are not all
    best = train(dataclasses.replace(given, resume=given.out / checkpoint.LAST), second)
    assert torch.backends.cudnn.benchmark is before
    steps = len(first.values) // 2
    assert steps >= 1
    assert len(second.values) == (3 - saved) * steps
    assert all(map(math.isfinite, first.values + second.values))
    rows = checkpoint.read_metrics(given.out)
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert (given.out / "samples.png").is_file() or (kind, cache) == ("report", True)
    with TorchRuntime(best, device=device) as runtime:
        pixels = ResizedPairs(*_squares(4)).images
        assert runtime.infer(pixels).shape == (4, 64, 64)
    _, state = checkpoint.load(given.out / checkpoint.LAST)
    assert ("average" in state) is (kind == "default")


def _squares(count: int) -> Any:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 64, 64, 3), dtype=torch.uint8, generator=generator)
    masks = 255 * (torch.rand((count, 64, 64), generator=generator) > 0.5).byte()
    return images.numpy(), masks.numpy()


def test_plain_batches_on_the_device_are_those_of_the_cpu(device: str) -> None:
    resized = ResizedPairs(*_squares(10))
    for (image, mask), (image_2, mask_2) in zip(
        StillPairs(resized, device).batches(4, 7), StillPairs(resized, "cpu").batches(4, 7), strict=True
    ):
        assert image.device.type == device
        assert torch.equal(image.cpu(), image_2)
        assert torch.equal(mask.cpu(), mask_2)


def test_features_on_the_device_are_those_of_the_cpu(device: str) -> None:
    _, masks = _squares(10)
    parts = [torch.rand(10, channels, 8, 8).half() for channels in (16, 24, 32, 96, 320)]
    moved = [part.to(device) for part in parts]
    there = FeatureBatches(moved, torch.from_numpy(masks).to(device), 4, 3, device)
    here = FeatureBatches(parts, masks, 4, 3, "cpu")
    assert len(there) == len(here) == 2
    for (ours, mask), (theirs, mask_2) in zip(there, here, strict=True):
        assert all(torch.equal(a.cpu(), b) for a, b in zip(ours, theirs, strict=True))
        assert all(a.dtype == torch.float32 for a in ours)
        assert torch.equal(mask.cpu(), mask_2)


def test_losses_are_read_in_order_and_none_is_lost(device: str) -> None:
    losses, found = LateLosses(), list[tuple[float, int]]()
    for n in range(5):
        known = losses.read(torch.tensor(float(n), device=device, requires_grad=True) * 2, n)
        assert len(known) == (1 if device == "cpu" or n else 0)
        found += known
    found += losses.rest()
    assert found == [(2.0 * n, n) for n in range(5)]
    assert losses.rest() == []
