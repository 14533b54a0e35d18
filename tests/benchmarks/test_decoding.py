"""Ways of decoding: what each is held against, that a wrong one is found, and what is written."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from isicrt.benchmarks import decoding
from isicrt.benchmarks.decoding import SCHEMA, WAYS, command, measure_decoding, problems, to_markdown
from isicrt.benchmarks.evaluation import Case
from isicrt.benchmarks.rendered import render
from isicrt.benchmarks.tradeoff import find_cases
from isicrt.engine import geometry, images
from isicrt.engine.errors import DataError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.runtime import open_runtime
from isicrt.engine.shipped import resolve

BY_NAME = {way.name: way for way in WAYS}
WHOLE = BY_NAME["whole"]


@pytest.fixture(scope="module")
def large_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five rendered pairs that are scaled by 1, 2, 4 and 8 for a 64 px model, one of them a PNG."""
    root = tmp_path_factory.mktemp("large")
    (root / "images").mkdir()
    (root / "masks").mkdir()
    for n, size in enumerate([(90, 127), (128, 150), (300, 257), (600, 801), (140, 160)]):
        image, mask = render(n, size)
        Image.fromarray(image).save(root / "images" / f"ISIC_{n:07d}.{'png' if n == 4 else 'jpg'}", quality=92)
        Image.fromarray(mask).save(root / "masks" / f"ISIC_{n:07d}_Segmentation.png")
    return root


def cases_of(root: Path) -> list[Case]:
    return find_cases([root], "test")


def call(model: Path | str, data: Path, *options: str) -> Result:
    return CliRunner().invoke(command, [str(model), "--data", str(data), *options])


def compared(result: dict[str, Any], way: str, against: str = "whole") -> dict[str, Any]:
    (found,) = [c for c in result["comparisons"] if (c["way"], c["against"]) == (way, against)]
    return dict(found)


def test_the_reference_against_itself_is_0(darkness_onnx: Path, rendered_pairs: Path) -> None:
    again = dataclasses.replace(WHOLE, name="again")
    with open_runtime(darkness_onnx) as runtime:
        result = measure_decoding(runtime, cases_of(rendered_pairs), ways=(WHOLE, again))
    assert [(c["way"], c["against"]) for c in result["comparisons"]] == [("whole", "whole"), ("again", "whole")]
    for c in result["comparisons"]:
        assert c["images"] == 12
        assert c["pixels"] == {"mean": 0, "max": 0}
        assert (c["masks"]["jaccard_mean"], c["masks"]["jaccard_min"], c["masks"]["identical"]) == (1, 1, 12)
        assert c["change"] == {"jaccard": 0, "low": 0, "high": 0, "largest": 0}
    assert result["ways"][0]["per_image"] == result["ways"][1]["per_image"]
    assert problems(result) == []


def test_every_way_sees_the_same_images_and_none_is_scaled_too_far(darkness_onnx: Path, large_pairs: Path) -> None:
    with open_runtime(darkness_onnx) as runtime:
        result = measure_decoding(runtime, cases_of(large_pairs), max_change=0.01)
    assert result["scaled"] == {"1/1": 2, "1/2": 1, "1/4": 1, "1/8": 1}
    assert result["below_input"] == []
    assert problems(result) == []
    for c in result["comparisons"]:
        assert c["pixels"]["mean"] < 1.5, c
        assert c["masks"]["jaccard_min"] > 0.9, c
    # The whole image is the same to the bit by both decoders; what is left is the other library's rounding.
    assert compared(result, "training")["pixels"]["max"] <= 1
    ways = [way["name"] for way in result["ways"]]
    trained = [name for name in ways if name.startswith("training")]
    assert [(c["way"], c["against"]) for c in result["comparisons"]] == [
        *((name, "whole") for name in ways),
        *(("segment", name) for name in trained),
    ]
    assert {c["way"] for c in result["comparisons"] if not c["decides"]} == {"training-warp", "segment"}
    assert compared(result, "segment")["decides"]
    assert compared(result, "segment", "training")["decides"]


def test_the_two_causes_are_told_apart(darkness_onnx: Path, large_pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By Pillow and whole, nothing is left of either."""
    monkeypatch.setattr(geometry, "cykooz_resizer", None)
    with open_runtime(darkness_onnx) as runtime:
        result = measure_decoding(runtime, cases_of(large_pairs), max_change=0.01)
    assert compared(result, "training")["pixels"]["max"] == 0
    assert compared(result, "segment")["pixels"] == compared(result, "segment-pillow")["pixels"]
    assert compared(result, "segment")["pixels"]["max"] > 1


def _nearest(image: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.NEAREST))


def _shifted(image: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    return np.roll(geometry.resize_by_pillow(image, size), 2, axis=1)


def _too_dark(image: UInt8Array, size: tuple[int, int]) -> UInt8Array:
    return geometry.resize_by_pillow(image, size) // 8 * 8


@pytest.mark.parametrize("wrong", [_nearest, _shifted, _too_dark])
def test_a_wrong_decoder_is_found(
    wrong: Callable[[UInt8Array, tuple[int, int]], UInt8Array],
    darkness_onnx: Path,
    large_pairs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images, "resize_image", wrong)
    done = call(darkness_onnx, large_pairs, "--json", str(tmp_path / "d.json"))
    assert done.exit_code == 1
    assert "Error: the ways of decoding do not agree: segment against whole: the score changes by " in done.output
    assert "segment against training: the score changes by " in done.output
    assert "training against whole:" not in done.output
    result = json.loads((tmp_path / "d.json").read_text())  # which is written all the same
    assert abs(compared(result, "segment")["change"]["jaccard"]) >= 0.001
    assert not compared(result, "training")["problems"]


@pytest.mark.parametrize(("count", "few"), [(1, True), (9, True), (10, False)])
def test_few_images_have_no_interval(
    count: int, few: bool, darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "d.json"
    done = call(darkness_onnx, rendered_pairs, "--limit", str(count), "--json", str(out), "--max-change", "1")
    assert done.exit_code == 0, done.output
    assert all((c["change"]["low"] is None) == few for c in json.loads(out.read_text())["comparisons"])
    assert ("(too few images)" in done.output) == few
    assert f"- Images: {count} (" in done.output


def test_an_image_that_is_scaled_too_far_is_found(
    darkness_onnx: Path, large_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_far(data: bytes, size: tuple[int, int], *rest: Any) -> tuple[UInt8Array, tuple[int, int]]:
        pixels, native = images.decode_data(data, None, *rest)
        return pixels[::4, ::4], native

    monkeypatch.setattr(decoding, "decode_data", too_far)
    done = call(darkness_onnx, large_pairs, "--max-change", "1")
    assert done.exit_code == 1
    assert "images scaled below the model's size: 3, such as ISIC_0000000" in done.output


def test_the_file_says_what_was_measured_and_not_where(
    darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    monkeypatch.setenv("ISICRT_CPU_RUNTIME", "onnxruntime")
    root = tmp_path / "set"
    root.mkdir()
    (root / "test").symlink_to(rendered_pairs, target_is_directory=True)
    out = tmp_path / "d.json"
    done = call(darkness_onnx, root, "--limit", "4", "--json", str(out), "--max-change", "0.05")
    assert done.exit_code == 0, done.output
    text = out.read_text()
    assert not re.search(r'(^|[\s"\'=(])(/|[A-Za-z]:\\)\w', text)
    assert str(tmp_path) not in text
    result = json.loads(text)
    assert result["schema"] == SCHEMA
    assert result["command"] == (
        "ISICRT_CPU_RUNTIME=onnxruntime "
        "python -m isicrt.benchmarks.decoding darkness.onnx --data set --split test --limit 4 --json d.json "
        "--max-change 0.05"
    )
    assert result["data"] == {"set": "set/test", "images": 4, "of": 12}
    assert list(result["ways"][0]["per_image"]) == [f"ISIC_{n:07d}" for n in (0, 3, 6, 9)]
    assert (result["model"]["name"], result["model"]["input"]) == ("darkness", [64, 64])
    assert len(result["model"]["sha256"]) == 64
    assert {"numpy", "pillow", "simplejpeg"} <= result["environment"]["versions"].keys()
    assert result["not_measured"] == [{"name": "training-dali", "reason": "nvidia.dali cannot be imported"}]
    assert "training-dali: not measured, nvidia.dali cannot be imported." in done.output
    assert to_markdown(result) in done.output
    assert "| segment | training | " in done.output


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--limit", "0"], "--limit"), (["--max-change", "0"], "--max-change"), (["--split", "all"], "--split")],
)
def test_bad_options(options: list[str], message: str, darkness_onnx: Path, rendered_pairs: Path) -> None:
    done = call(darkness_onnx, rendered_pairs, *options)
    assert done.exit_code == 2
    assert message in done.output


@pytest.mark.parametrize("damage", ["image", "size", "empty", "model", "folder"])
def test_what_cannot_be_measured(damage: str, darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    root = tmp_path / "set"
    for kind in ("images", "masks"):
        (root / kind).mkdir(parents=True)
    image = root / "images" / "ISIC_0000000.jpg"
    if damage != "empty":
        image.write_bytes((rendered_pairs / "images" / image.name).read_bytes()[: 900 if damage == "image" else None])
        truth = f"ISIC_000000{1 if damage == 'size' else 0}_Segmentation.png"
        (root / "masks" / "ISIC_0000000_Segmentation.png").write_bytes((rendered_pairs / "masks" / truth).read_bytes())
    out = tmp_path / ("none/d.json" if damage == "folder" else "d.json")
    model = "no-such-model" if damage == "model" else darkness_onnx
    done = call(model, root, "--json", str(out), "--max-change", "0.5")
    assert done.exit_code == (2 if damage == "folder" else 1)
    assert "Error: " in done.output
    assert not out.exists()


def test_no_cases(darkness_onnx: Path) -> None:
    with open_runtime(darkness_onnx) as runtime, pytest.raises(DataError, match="no image"):
        measure_decoding(runtime, [])


def test_training_is_followed_to_the_bit(large_pairs: Path, tmp_path: Path) -> None:
    """The benchmark may not import the trainer, so that it does as the trainer does is held here."""
    pytest.importorskip("torch")
    pytest.importorskip("nvidia.dali")
    from isicrt.engine.card import ModelCard
    from isicrt.trainer.cache import resized_pairs
    from isicrt.trainer.dataset import find_pairs
    from isicrt.trainer.pipelines import TrainingBatches, cache_size
    from isicrt.trainer.recipe import Augmentation
    from isicrt.trainer.validation import ValidationSet

    size = 63
    pairs = find_pairs(large_pairs)
    files = [pair.image for pair in pairs]
    card = ModelCard(name="any", architecture="test", input_height=size, input_width=size)

    def fed(**settings: Any) -> UInt8Array:
        batches = TrainingBatches(pairs, size=size, batch_size=len(pairs), seed=1, **settings)
        ((pixels, _),) = list(batches)
        return np.asarray(pixels)[np.argsort(batches.order)]

    training = np.stack(BY_NAME["training"].decode(files, (size, size)))
    assert (training == ValidationSet(pairs, card)._images).all()
    assert (training == resized_pairs(pairs, size, tmp_path).images).all()
    assert (training == fed(augmentation=None, resized=resized_pairs(pairs, size, tmp_path))).all()
    assert (np.stack(BY_NAME["training-dali"].decode(files, (size, size))) == fed(augmentation=None)).all()

    still = Augmentation(min_zoom=1, max_aspect=1, flip=False, rotate_probability=0, brightness=0, contrast=0)
    still = dataclasses.replace(still, saturation=0, hue=0, max_noise=0)
    warped = fed(augmentation=still, resized=resized_pairs(pairs, cache_size(size), tmp_path))
    ours = np.stack(BY_NAME["training-warp"].decode(files, (size, size)))
    assert np.abs(ours.astype(int) - warped).max() <= 1  # OpenCV rounds its weights, DALI does not


def test_the_shipped_model_on_patients(real_data: Path, tmp_path: Path) -> None:
    """Few images, so a wide limit; what all of them say is in benchmarks/results/decoding.json."""
    out = tmp_path / "d.json"
    done = call("unet-light", real_data / "isic2016", "--limit", "12", "--json", str(out), "--max-change", "0.005")
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert result["model"]["file"] == resolve("unet-light").name
    assert result["data"] == {"set": "isic2016/test", "images": 12, "of": 339}
    assert result["scaled"] == {"1/2": 12}
    segment = compared(result, "segment")
    assert 0 < segment["pixels"]["mean"] < 0.6
    assert segment["masks"]["jaccard_mean"] > 0.99
    assert all(0.7 < way["jaccard"] < 1 for way in result["ways"])
