"""Averaged views: the mean that numpy finds of single ones, on both runtimes, in the same signature; and a plan."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import TensorProto, helper

from isicrt.benchmarks.rendered import render
from isicrt.engine import shipped
from isicrt.engine.cpu_runtime import CpuRuntime
from isicrt.engine.errors import BuildError
from isicrt.engine.geometry import UInt8Array, resize_image
from isicrt.engine.onnx_file import read_onnx_card
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.openvino_runtime import OpenVinoRuntime
from isicrt.export.half import to_half
from isicrt.export.onnx_export import Deployed, export_onnx
from isicrt.export.onnx_graph import set_card
from isicrt.export.parity import OnnxLevels
from isicrt.export.quantisation import quantise
from isicrt.export.second_look import look_again_below
from isicrt.export.views import VIEWS, average_file, average_views, main, views_card
from tests.export.tiny_network import tiny_card, tiny_network
from tests.tiny_models import darkness_card, write_darkness_model

SQUARE = tiny_card(input_width=64, scores={"somewhere": {"jaccard": 0.5}}, parity={"images": 3})


@pytest.fixture(scope="module")
def square(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny network for 64 x 64 px, as a file."""
    model = export_onnx(Deployed(tiny_network(), SQUARE).eval(), SQUARE)
    return _save(model, tmp_path_factory.mktemp("square") / "tiny.onnx")


@pytest.fixture(scope="module")
def square_pixels() -> UInt8Array:
    """Eight rendered images of 64 x 64 px, the lesion of each in another place."""
    return _rendered(8, (64, 64))


def _rendered(number: int, size: tuple[int, int]) -> UInt8Array:
    return np.stack([resize_image(render(seed, (180, 240))[0], size) for seed in range(number)])


def _save(model: onnx.ModelProto, path: Path, **changes: object) -> Path:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    set_card(copy, SQUARE.replace(**changes))
    path.write_bytes(copy.SerializeToString())
    return path


def _averaged(path: Path, views: int, folder: Path) -> Path:
    out = folder / f"{path.stem}-x{views}.onnx"
    out.write_bytes(average_file(path, views)[1])
    return out


# What numpy does to a square array to see it so, and to turn it back; axes are rows and columns.
BY_HAND: list[tuple[Callable[[UInt8Array], UInt8Array], Callable[[UInt8Array], UInt8Array]]] = [
    (lambda a, k=k, m=m: np.rot90(a[:, :, ::-1] if m else a, k, (1, 2)), lambda a, k=k, m=m: _back(a, k, m))  # type: ignore[misc]
    for m in (False, True)
    for k in range(4)
]


def _back(array: UInt8Array, turns: int, mirrored: bool) -> UInt8Array:
    straight = np.rot90(array, -turns, (1, 2))
    return straight[:, :, ::-1] if mirrored else straight


def _mean_by_hand(path: Path, views: int, images: UInt8Array, kind: type[CpuRuntime] = OnnxRuntime) -> np.ndarray:
    """Mean over single runs of the original."""
    chosen = BY_HAND[:4:2] if views == 2 else BY_HAND[:views]
    with kind(path, threads=1) as runtime:
        return np.mean([back(runtime.infer(np.ascontiguousarray(see(images)))) for see, back in chosen], axis=0)


def _run(path: Path, images: UInt8Array, kind: type[CpuRuntime] = OnnxRuntime) -> UInt8Array:
    with kind(path, threads=1) as runtime:
        return runtime.infer(images)


def test_the_views_are_the_turns_and_their_mirror_images() -> None:
    image = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    for number, views in VIEWS.items():
        seen = {view.see(image).tobytes() for view in views}
        chosen = BY_HAND[:4:2] if number == 2 else BY_HAND[:number]
        assert seen == {np.ascontiguousarray(see(image)).tobytes() for see, _ in chosen}
        assert len(seen) == number
        for view in views:
            np.testing.assert_array_equal(view.undo(view.see(image)), image)


@pytest.mark.parametrize("kind", [OnnxRuntime, OpenVinoRuntime])
@pytest.mark.parametrize("views", VIEWS)
def test_it_is_the_mean_in_any_batch(
    square: Path, square_pixels: UInt8Array, tmp_path: Path, views: int, kind: type[CpuRuntime]
) -> None:
    path = _averaged(square, views, tmp_path)
    expected = _mean_by_hand(square, views, square_pixels, kind)
    assert np.abs(expected - _run(square, square_pixels, kind)).max() > 5, "turning it must matter"
    for threads in (1, 2):
        with kind(path, threads=threads) as runtime:
            for batch in (1, 3, 8):
                images = square_pixels[:batch]
                found = runtime.infer(images)
                assert (found.dtype, found.shape) == (np.uint8, (batch, 64, 64))
                assert np.abs(found - expected[:batch]).max() <= 1
                assert np.abs(runtime.collect(runtime.submit(images)) - expected[:batch]).max() <= 1


@pytest.mark.parametrize("kind", [OnnxRuntime, OpenVinoRuntime])
@pytest.mark.parametrize("name", [shipped.DEFAULT, shipped.FLOAT])
def test_the_shipped_models(name: str, tmp_path: Path, kind: type[CpuRuntime]) -> None:
    if name not in shipped.names():
        pytest.skip("no model ships yet")
    original = tmp_path / "once.onnx"
    original.write_bytes(look_again_below(shipped.resolve(name), 0.0))
    path = _averaged(original, 4, tmp_path)
    images = _rendered(3, read_onnx_card(original).input_size)
    found = _run(path, images, kind).astype(int)
    assert np.abs(found - _mean_by_hand(original, 4, images, kind)).max() <= 1
    # A mean of all turns cannot tell how the image was turned.
    turned = _run(path, np.ascontiguousarray(np.rot90(images, 1, (1, 2))), kind)
    assert np.abs(np.rot90(turned, -1, (1, 2)) - found).max() <= 1


def test_all_eight_see_mirror_images_alike(square: Path, square_pixels: UInt8Array, tmp_path: Path) -> None:
    path = _averaged(square, 8, tmp_path)
    found = _run(path, square_pixels).astype(int)
    for see, back in BY_HAND:
        again = back(_run(path, np.ascontiguousarray(see(square_pixels))))
        assert np.abs(again - found).max() <= 1


def test_an_image_knows_nothing_of_its_neighbours(square: Path, square_pixels: UInt8Array, tmp_path: Path) -> None:
    path = _averaged(square, 4, tmp_path)
    others = square_pixels.copy()
    others[[0, 1, 3]] = 255 - others[[0, 1, 3]]
    before, after = _run(path, square_pixels[:4]), _run(path, others[:4])
    np.testing.assert_array_equal(before[2], after[2])
    assert (before[1] != after[1]).any()


def test_an_oblong_input_is_turned_by_half_a_turn(
    tiny_onnx: onnx.ModelProto, pixels: UInt8Array, tmp_path: Path
) -> None:
    oblong = _save(tiny_onnx, tmp_path / "tiny.onnx", input_width=96)
    path = _averaged(oblong, 2, tmp_path)
    assert np.abs(_run(path, pixels) - _mean_by_hand(oblong, 2, pixels)).max() <= 1
    with pytest.raises(BuildError, match=r"tiny\.onnx: 'tiny' takes 64 x 96 px.*use --views 2"):
        average_file(oblong, 4)


def test_the_mean_is_taken_before_rounding(square: Path, square_pixels: UInt8Array, tmp_path: Path) -> None:
    levels = OnnxLevels(onnx.load(square))
    exact = np.mean([back(levels(np.ascontiguousarray(see(square_pixels)))) for see, back in BY_HAND[:4]], axis=0)
    averaged = onnx.load(_averaged(square, 4, tmp_path))
    assert np.abs(OnnxLevels(averaged)(square_pixels) - exact).max() < 0.01


def test_half_and_int8_stay_what_they_are(square: Path, square_pixels: UInt8Array, tmp_path: Path) -> None:
    model = onnx.load(square)
    half = _save(to_half(model), tmp_path / "half.onnx", precision="fp16")
    int8 = _save(quantise(model, list(square_pixels[:4])), tmp_path / "int8.onnx", precision="int8")
    for original in (half, int8):
        path = _averaged(original, 4, tmp_path)
        before, after = onnx.load(original), onnx.load(path)
        kinds = [Counter(node.op_type for node in graph.graph.node) for graph in (before, after)]
        for kind in ("Conv", "ConvTranspose", "QuantizeLinear", "DequantizeLinear", "Resize"):
            assert kinds[0][kind] == kinds[1][kind]
        assert read_onnx_card(path).precision == original.stem.replace("half", "fp16")
        assert after.opset_import == before.opset_import
        assert list(after.graph.input) == list(before.graph.input)
        assert list(after.graph.output) == list(before.graph.output)
        assert abs(path.stat().st_size - original.stat().st_size) < 8000, "the weights are there once"
        assert np.abs(_run(path, square_pixels) - _mean_by_hand(original, 4, square_pixels)).max() <= 1


def test_the_original_is_left_alone_and_the_result_is_the_same_each_time(square: Path) -> None:
    model = onnx.load(square)
    before = model.SerializeToString(deterministic=True)
    first, second = (average_views(model, 4).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert model.SerializeToString(deterministic=True) == before


def test_the_card(square: Path, tmp_path: Path) -> None:
    card, data = average_file(square, 8)
    (tmp_path / "x8.onnx").write_bytes(data)
    assert read_onnx_card(tmp_path / "x8.onnx") == card
    assert (card.name, card.views, card.network["views"]) == ("tiny-x8", 8, 8)
    assert (card.input_size, card.precision) == (SQUARE.input_size, SQUARE.precision)
    assert card.scores == {"somewhere, of one view": {"jaccard": 0.5}}
    assert card.parity == {"one_view": {"images": 3}}
    assert SQUARE.views == 1


def test_what_is_refused(square: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="'tiny-x2' averages 2 views already"):
        average_file(_averaged(square, 2, tmp_path), 4)
    with pytest.raises(BuildError, match="'darkness' takes 32 x 64 px"):
        views_card(darkness_card((32, 64)), 8)
    model = onnx.load(square)
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    with pytest.raises(BuildError, match="fixed batch of 2"):
        average_views(fixed, 2)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([helper.make_node("Identity", ["image"], ["probability"])], "does not begin with one Cast of 'image'"),
        (
            [
                helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
                helper.make_node("QuantizeLinear", ["f", "one"], ["probability"]),
            ],
            "does not end with a Cast to 'probability'",
        ),
        (
            [
                helper.make_node("Cast", ["image"], ["f"], to=TensorProto.FLOAT),
                helper.make_node("Greater", ["f", "one"], ["yes"]),
                helper.make_node("Cast", ["yes"], ["probability"], to=TensorProto.UINT8),
            ],
            "is not valid",
        ),
    ],
    ids=["no_cast", "no_rounding", "no_float"],
)
def test_graphs_that_are_not_ours(nodes: list[onnx.NodeProto], message: str) -> None:
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 4, 4])],
        [helper.make_tensor_value_info("probability", TensorProto.UINT8, ["n", 4, 4])],
        [helper.make_tensor("one", TensorProto.FLOAT, [], [1.0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(BuildError, match=message):
        average_views(model, 2)


def test_a_plan_with_every_convolution_half(square: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    from isicrt.engine import tensorrt_api
    from isicrt.export.inspection import half_share
    from isicrt.export.tensorrt_build import Profile, build_engine

    model = to_half(average_views(onnx.load(square), 8))
    engine = build_engine(tensorrt_api.load("tensorrt-rtx"), model.SerializeToString(), Profile(1, 4, 8), half=True)
    assert len(engine.plan) > 1000
    assert half_share(engine.layers) == "6 of 6 convolutions"


def _call(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_command(tmp_path: Path) -> None:
    write_darkness_model(tmp_path / "dark.onnx")
    done = _call(tmp_path / "dark.onnx", tmp_path / "x4.onnx", "--views", 4)
    assert done.exit_code == 0, done.output
    assert "darkness-x4: 4 views, 4 times the arithmetic" in done.output
    image = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    np.testing.assert_array_equal(_run(tmp_path / "x4.onnx", image), 255 - image[..., 1])


@pytest.mark.parametrize(
    ("views", "code", "message"), [("3", 2, "'3' is not one of"), ("1", 2, "'1' is not"), ("4", 1, "32 x 64 px")]
)
def test_command_refuses(tmp_path: Path, views: str, code: int, message: str) -> None:
    write_darkness_model(tmp_path / "dark.onnx", (32, 64))
    done = _call(tmp_path / "dark.onnx", tmp_path / "out.onnx", "--views", views)
    assert (done.exit_code, message in done.output) == (code, True), done.output
    assert not (tmp_path / "out.onnx").exists()
