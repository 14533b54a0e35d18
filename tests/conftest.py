"""Fixtures for all rooms."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from isicrt.benchmarks.rendered import render
from isicrt.engine.cores import available_cores
from isicrt.engine.runtime import CPU_RUNTIME_VARIABLE
from isicrt.engine.silent_imports import silence_onnxruntime
from isicrt.trainer.dataset import LEFT_OUT
from tests.tiny_models import write_darkness_model

REPOSITORY = Path(__file__).resolve().parent.parent
_MOST_WORKERS = 8
"""Each loads torch, of half a gigabyte."""
if (workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT")) is not None:
    # Each would start a thread a core, all of which wait for each other by spinning.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // int(workers))))
silence_onnxruntime()  # tests import it too


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """For ``-n auto``: the cores that may be used, where xdist would count those of the machine."""
    return min(_MOST_WORKERS, available_cores())


@pytest.fixture(autouse=True, scope="session")
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Resized pairs go to a temporary folder, not to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ISICRT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def rendered_images_may_be_learned_from() -> Iterator[None]:
    """They are numbered from 0, and image 3 of ISIC 2016 is one of its test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delitem(LEFT_OUT, "ISIC_0000003")
        yield


@pytest.fixture(autouse=True, scope="session")
def the_runtime_that_everybody_has() -> Iterator[None]:
    """ONNX Runtime, although the developers' installation has OpenVINO too; `test_cpu_runtimes.py` tries both."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CPU_RUNTIME_VARIABLE, "onnxruntime")
        yield


@pytest.fixture(scope="session")
def darkness_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 64 x 64 model that finds dark things. See `tests.tiny_models`."""
    path = tmp_path_factory.mktemp("models") / "darkness.onnx"
    write_darkness_model(path)
    return path


@pytest.fixture(scope="session")
def rendered_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``images/ISIC_000000N.jpg`` and ``masks/ISIC_000000N_Segmentation.png``, 12 rendered pairs."""
    root = tmp_path_factory.mktemp("rendered")
    (root / "images").mkdir()
    (root / "masks").mkdir()
    for n in range(12):
        image, mask = render(n, (96, 128) if n % 2 else (120, 90))
        Image.fromarray(image).save(root / "images" / f"ISIC_{n:07d}.jpg", quality=92)
        Image.fromarray(mask).save(root / "masks" / f"ISIC_{n:07d}_Segmentation.png")
    return root


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets: $ISICRT_SHARED_DATA, or ../shared/data beside the checkout."""
    path = Path(os.environ.get("ISICRT_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not (path / "isic2016" / "test" / "images").is_dir():
        pytest.skip(f"no real images: {path} has no isic2016/test/images (set ISICRT_SHARED_DATA)")
    return path


@pytest.fixture(scope="session")
def encoder_weights() -> Path:
    """ImageNet weights of MobileNetV2: $ISICRT_ENCODER_WEIGHTS, or ../shared/weights beside the checkout."""
    default = REPOSITORY.parent / "shared" / "weights" / "mobilenet_v2_imagenet1k_v1.pth"
    path = Path(os.environ.get("ISICRT_ENCODER_WEIGHTS", default))
    if not path.is_file():
        pytest.skip(f"no encoder weights at {path} (set ISICRT_ENCODER_WEIGHTS)")
    return path


@pytest.fixture
def without_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user of a container who is in no list of users."""

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("ISICRT_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)


def make_splits(root: Path) -> Path:
    """A rendered data set with a train split of 12 pairs and a test split of 3."""
    for split, seeds in (("train", range(12)), ("test", range(20, 23))):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for n in seeds:
            image, mask = render(n, (60, 80))
            Image.fromarray(image).save(root / split / "images" / f"ISIC_{n:07d}.jpg", quality=92)
            Image.fromarray(mask).save(root / split / "masks" / f"ISIC_{n:07d}_Segmentation.png")
    return root
