"""The peer is what it says it is: a plain U-Net of the wanted cost that runs like any model of ours."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

from isicrt.benchmarks.macs import count_macs
from isicrt.benchmarks.plain_unet import main, plain_unet, plain_widths, widths_macs
from isicrt.engine.errors import SettingsError
from isicrt.engine.runtime import open_runtime


@pytest.fixture(scope="module")
def small() -> onnx.ModelProto:
    return plain_unet(0.05, 64)


@pytest.mark.parametrize(("gmac", "size"), [(4, 128), (4, 192), (4, 224), (4, 256), (4, 320), (8, 192)])
def test_the_cost_is_near_what_was_wanted(gmac: float, size: int) -> None:
    widths = plain_widths(gmac, size)
    assert widths_macs(widths, size) / 1e9 == pytest.approx(gmac, rel=0.05)
    assert all(width % 8 == 0 for width in widths)
    assert all(1.5 <= below / above <= 2.5 for above, below in itertools.pairwise(widths))


def test_the_formula_is_what_is_counted_in_the_graph(small: onnx.ModelProto) -> None:
    assert count_macs(small) == widths_macs(plain_widths(0.05, 64), 64)


def test_it_is_plain(small: onnx.ModelProto) -> None:
    kinds = Counter(node.op_type for node in small.graph.node)
    assert (kinds["MaxPool"], kinds["ConvTranspose"], kinds["Concat"]) == (4, 4, 4)
    assert (kinds["Conv"], kinds["Relu"]) == (19, 18)
    attributes = [a.name for node in small.graph.node if node.op_type == "Conv" for a in node.attribute]
    assert "group" not in attributes


def test_the_seed_decides_the_weights(small: onnx.ModelProto) -> None:
    assert plain_unet(0.05, 64).SerializeToString(deterministic=True) == small.SerializeToString(deterministic=True)
    assert plain_unet(0.05, 64, seed=1).SerializeToString(deterministic=True) != small.SerializeToString(
        deterministic=True
    )


def test_it_runs_and_says_that_it_is_untrained(tmp_path: Path) -> None:
    path = tmp_path / "plain.onnx"
    done = CliRunner().invoke(main, [str(path), "--gmac", "0.05", "--size", "64"])
    assert (done.exit_code, "GMAC at 64 px" in done.output) == (0, True), done.output
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    with open_runtime(path, threads=1) as runtime:
        found = runtime.infer(images)
        assert found.shape == (3, 64, 64)
        assert found.std() > 1, "neither dead nor saturated"
        assert "not trained" in runtime.card.training["note"]
        assert runtime.card.network["macs"] == widths_macs(tuple(runtime.card.network["widths"]), 64)


@pytest.mark.parametrize(
    ("gmac", "size", "message"),
    [(4, 100, "multiple of 16"), (4, 0, "multiple of 16"), (0.01, 192, "choose from 0.43"), (1e6, 64, "choose from")],
)
def test_what_cannot_be_built(gmac: float, size: int, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        plain_widths(gmac, size)


def test_a_wish_that_cannot_be_met_is_an_error_and_no_file(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [str(tmp_path / "x.onnx"), "--size", "100"])
    assert (done.exit_code, list(tmp_path.iterdir())) == (1, [])
    assert "multiple of 16" in done.output
