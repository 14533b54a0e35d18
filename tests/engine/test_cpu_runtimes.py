"""The runtimes on the CPU: the contract of a runtime, and the files that are refused."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from isicrt.benchmarks.rendered import render
from isicrt.engine import shipped
from isicrt.engine.card import METADATA_KEY
from isicrt.engine.cpu_runtime import Call, CpuRuntime
from isicrt.engine.errors import MissingDependencyError, ModelError, SettingsError
from isicrt.engine.geometry import UInt8Array, resize_image
from isicrt.engine.in_flight import infer_batches
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.openvino_runtime import OpenVinoRuntime
from isicrt.engine.runtime import CPU_RUNTIME_VARIABLE, PipelinedRuntime, Runtime, open_runtime
from isicrt.engine.silent_imports import import_onnxruntime
from tests.tiny_models import darkness_card, write_darkness_model


@pytest.fixture(params=[OnnxRuntime, OpenVinoRuntime])
def runtime_class(request: pytest.FixtureRequest) -> type[CpuRuntime]:
    kind: type[CpuRuntime] = request.param
    return kind


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_any_batch_gives_each_image_its_own_probability(
    runtime_class: type[CpuRuntime], darkness_onnx: Path, batch: int, threads: int
) -> None:
    images = np.random.default_rng(batch).integers(0, 256, (batch, 64, 64, 3), np.uint8)
    with runtime_class(darkness_onnx, threads=threads) as runtime:
        probability = runtime.infer(images)
    assert probability.dtype == np.uint8
    np.testing.assert_array_equal(probability, 255 - images[..., 1])


@pytest.mark.parametrize("name", shipped.names())
def test_both_runtimes_see_the_same_lesion(name: str) -> None:
    """They sum in another order, which moves the border of an 8-bit mask by a pixel here and there."""
    path = shipped.resolve(name)
    results = []
    for kind in (OnnxRuntime, OpenVinoRuntime):
        with kind(path, threads=2) as runtime:
            images = np.stack([resize_image(render(seed, (300, 400))[0], runtime.card.input_size) for seed in range(4)])
            results.append(runtime.infer(images).astype(int))
    for a, b in zip(*(probability > 127 for probability in results), strict=True):
        assert (a & b).sum() / (a | b).sum() > 0.98
    assert np.abs(results[0] - results[1]).mean() < (1.0 if "int8" in name else 0.05)


def test_batches_in_flight_come_back_as_themselves(runtime_class: type[CpuRuntime], darkness_onnx: Path) -> None:
    rng = np.random.default_rng(0)
    batches = [rng.integers(0, 256, (1 + n % 3, 64, 64, 3), np.uint8) for n in range(7)]
    with runtime_class(darkness_onnx, threads=2) as runtime:
        assert isinstance(runtime, PipelinedRuntime)
        assert runtime.depth == (4 if runtime_class.spare_calls else 3)
        results = list(infer_batches(runtime, enumerate(batches)))
        ticket = runtime.submit(batches[0])
        alone = runtime.infer(batches[1])
        written_over = batches[2].copy()
        second = runtime.submit(written_over)
        written_over[:] = 0
        np.testing.assert_array_equal(runtime.collect(second), 255 - batches[2][..., 1])
        np.testing.assert_array_equal(runtime.collect(ticket), 255 - batches[0][..., 1])
    assert [n for n, _ in results] == list(range(7))
    for batch, (_, probability) in zip(batches, results, strict=True):
        np.testing.assert_array_equal(probability, 255 - batch[..., 1])
    np.testing.assert_array_equal(alone, 255 - batches[1][..., 1])
    with pytest.raises(ModelError, match="closed"):
        runtime.submit(batches[0])


def test_it_is_a_runtime(runtime_class: type[CpuRuntime], darkness_onnx: Path) -> None:
    with runtime_class(darkness_onnx, threads=1) as runtime:
        assert isinstance(runtime, Runtime)
        assert runtime.card == darkness_card()
        assert runtime.name in ("onnxruntime-cpu", "openvino-cpu")
        assert runtime.max_batch is None


def test_a_result_is_the_callers_to_keep(runtime_class: type[CpuRuntime], darkness_onnx: Path) -> None:
    with runtime_class(darkness_onnx) as runtime:
        first = runtime.infer(np.full((1, 64, 64, 3), 10, np.uint8))
        runtime.infer(np.full((1, 64, 64, 3), 200, np.uint8))
    assert (first == 245).all()


@pytest.mark.parametrize("change", ["another", "gone"])
def test_a_file_that_changed_is_not_run_for_the_one_that_was_opened(
    runtime_class: type[CpuRuntime], tmp_path: Path, darkness_onnx: Path, change: str
) -> None:
    """`infer` on several threads loads at its first call, maybe long after the file's digest went into a journal."""
    own = tmp_path / "own.onnx"
    own.write_bytes(darkness_onnx.read_bytes())
    images = np.full((1, 64, 64, 3), 10, np.uint8)
    with runtime_class(own, threads=2) as runtime:
        assert runtime.is_unchanged()
        own.unlink()
        if change == "another":
            write_darkness_model(own, threshold=0.7)
        expected = "was changed since it was first read" if change == "another" else "cannot be read any more"
        with pytest.raises(ModelError, match=expected):
            runtime.infer(images)
        assert not runtime.is_unchanged()
        assert (runtime.infer_alone(images) == 245).all()
        own.write_bytes(darkness_onnx.read_bytes())
        assert runtime.is_unchanged()
        assert (runtime.infer(images) == 245).all()


def test_no_session_keeps_the_file(darkness_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnxruntime, sessions = import_onnxruntime(), []
    make = onnxruntime.InferenceSession

    def noted(*arguments: Any, **options: Any) -> Any:
        sessions.append(make(*arguments, **options))
        return sessions[-1]

    monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
    images = np.full((1, 64, 64, 3), 10, np.uint8)
    with OnnxRuntime(darkness_onnx, threads=2) as runtime:
        assert (runtime.infer(images) == runtime.infer_alone(images)).all()
    assert len(sessions) == 2
    assert darkness_onnx.read_bytes() not in [kept for one in sessions for kept in vars(one).values()]


def test_close_twice(runtime_class: type[CpuRuntime], darkness_onnx: Path) -> None:
    runtime = runtime_class(darkness_onnx)
    runtime.close()
    runtime.close()


@pytest.mark.parametrize("looks_again", [0.0, 0.9])
def test_what_nobody_closes_goes_with_its_last_user(
    runtime_class: type[CpuRuntime], tmp_path: Path, looks_again: float
) -> None:
    """And not with the next full collection, which may be long in coming: a network holds many megabytes."""
    if runtime_class is OpenVinoRuntime:
        pytest.importorskip("openvino", reason="OpenVINO is not installed (extra openvino)")
    write_darkness_model(tmp_path / "model.onnx", second_look=looks_again)
    gc.collect()
    gc.disable()
    try:
        runtime = runtime_class(tmp_path / "model.onnx", threads=2)
        runtime.infer(np.zeros((1, 64, 64, 3), np.uint8))
        runtime.collect(runtime.submit(np.zeros((3, 64, 64, 3), np.uint8)))
        left = weakref.ref(runtime)
        del runtime
        assert left() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 64, 64, 3), np.float32),
        np.zeros((64, 64, 3), np.uint8),
        np.zeros((1, 3, 64, 64), np.uint8),
        np.zeros((1, 32, 64, 3), np.uint8),
        np.zeros((0, 64, 64, 3), np.uint8),
    ],
    ids=["dtype", "no_batch", "channels_first", "size", "empty"],
)
def test_wrong_input_is_refused(runtime_class: type[CpuRuntime], darkness_onnx: Path, images) -> None:
    with (
        runtime_class(darkness_onnx) as runtime,
        pytest.raises(ModelError, match="takes uint8 images of N x 64 x 64 x 3"),
    ):
        runtime.infer(images)


def _changed(path: Path, change) -> Path:
    """The darkness model with `change` applied to its ONNX."""
    write_darkness_model(path)
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    return path


def test_a_closed_runtime_says_so(runtime_class: type[CpuRuntime], darkness_onnx: Path) -> None:
    with runtime_class(darkness_onnx) as runtime:
        pass
    with pytest.raises(ModelError, match="this runtime is closed"):
        runtime.infer(np.zeros((1, 64, 64, 3), np.uint8))


def test_a_fixed_batch_is_refused(runtime_class: type[CpuRuntime], tmp_path: Path) -> None:
    def fix(model: onnx.ModelProto) -> None:
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_value = 2

    with pytest.raises(ModelError, match=r"fixed\.onnx: takes batches of exactly 2; isicrt needs a symbolic batch"):
        runtime_class(_changed(tmp_path / "fixed.onnx", fix))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.ClearField("metadata_props"), "carries no model card"),
        (lambda model: helper.set_model_props(model, {METADATA_KEY: "{"}), "not valid JSON"),
        (
            lambda model: helper.set_model_props(model, {METADATA_KEY: darkness_card((32, 32)).to_json()}),
            "expected one uint8 input N x 32 x 32 x 3",
        ),
    ],
    ids=["no_card", "bad_card", "card_of_another_size"],
)
def test_foreign_models_are_refused(runtime_class: type[CpuRuntime], tmp_path: Path, change, message: str) -> None:
    path = _changed(tmp_path / "foreign.onnx", change)
    with pytest.raises(ModelError, match=message) as caught:
        runtime_class(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"not a model", b"\x08\x0a"])
def test_not_a_model(runtime_class: type[CpuRuntime], tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"broken\.onnx"):
        runtime_class(path)


@pytest.mark.parametrize(
    ("chosen", "expected"), [("onnxruntime", "onnxruntime-cpu"), ("openvino", "openvino-cpu"), ("", "openvino-cpu")]
)
def test_the_environment_chooses(
    darkness_onnx: Path, monkeypatch: pytest.MonkeyPatch, chosen: str, expected: str
) -> None:
    monkeypatch.setenv(CPU_RUNTIME_VARIABLE, chosen)
    with open_runtime(darkness_onnx) as runtime:
        assert runtime.name.startswith(expected)


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill does not send SIGINT there")
def test_ctrl_c_after_closing_is_an_interruption(runtime_class: type[CpuRuntime], darkness_onnx: Path) -> None:
    """And no segmentation fault, which OpenVINO makes of it after two of its Cores have gone."""
    with runtime_class(darkness_onnx, threads=2) as runtime:
        runtime.infer(np.zeros((1, 64, 64, 3), np.uint8))  # loads the network a second time
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012
            os.kill(os.getpid(), signal.SIGINT)
            threading.Event().wait(10)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_unknown_choice_is_named(darkness_onnx: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CPU_RUNTIME_VARIABLE, "tensorflow")
    with pytest.raises(SettingsError, match="ISICRT_CPU_RUNTIME=tensorflow: choose from auto, onnxruntime, openvino"):
        open_runtime(darkness_onnx)


def test_without_openvino_it_is_onnx_runtime_and_asking_for_it_names_the_extra(
    darkness_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setenv(CPU_RUNTIME_VARIABLE, "auto")
    for found in (None, object()):  # not there, or there and broken
        monkeypatch.setattr("isicrt.engine.runtime.find_spec", lambda name, found=found: found)
        with open_runtime(darkness_onnx) as runtime:
            assert runtime.name == "onnxruntime-cpu"
    monkeypatch.setenv(CPU_RUNTIME_VARIABLE, "openvino")
    with pytest.raises(MissingDependencyError, match=r"\.\[openvino\]"):
        open_runtime(darkness_onnx)


@pytest.mark.parametrize(
    "error", [RuntimeError("libtbb.so.12"), OSError("libtbb.so.12"), AttributeError("libtbb.so.12")]
)
def test_a_broken_openvino_is_said_and_onnx_runtime_takes_its_place(
    darkness_onnx: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr("isicrt.engine.openvino_runtime.import_openvino", fails)
    monkeypatch.setattr("isicrt.engine.runtime.find_spec", lambda name: object())
    monkeypatch.setenv(CPU_RUNTIME_VARIABLE, "auto")
    with open_runtime(darkness_onnx) as runtime:
        assert runtime.name == "onnxruntime-cpu"
    assert "OpenVINO is installed and cannot be loaded (libtbb.so.12): ONNX Runtime is used" in caplog.text
    monkeypatch.setenv(CPU_RUNTIME_VARIABLE, "openvino")
    with pytest.raises(MissingDependencyError, match=r"libtbb.so.12.*\.\[openvino\]"):
        open_runtime(darkness_onnx)


def test_a_batch_is_shared_out_among_threads_that_have_nothing_to_do(
    runtime_class: type[CpuRuntime], darkness_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8)
    together = threading.Barrier(2, timeout=20)
    with runtime_class(darkness_onnx, threads=2) as runtime:
        real = runtime._alone
        assert real is not None

        def both_at_once(part: UInt8Array) -> UInt8Array:
            together.wait()
            return real(part)

        monkeypatch.setattr(runtime, "_alone", both_at_once)
        probability = runtime.collect(runtime.submit(images))
    np.testing.assert_array_equal(probability, 255 - images[..., 1])


@pytest.mark.parametrize(("views", "parts"), [(1, [2, 2, 1]), (2, [1] * 5), (8, [1] * 5)])
def test_each_view_of_an_image_counts_as_an_image(
    runtime_class: type[CpuRuntime], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, views: int, parts: list[int]
) -> None:
    """So that what a layer writes stays in the core's cache."""
    write_darkness_model(tmp_path / "views.onnx", network={"views": views})
    images = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    computed = []
    with runtime_class(tmp_path / "views.onnx", threads=1) as runtime:
        real = runtime._alone
        assert real is not None

        def noted(part: UInt8Array) -> UInt8Array:
            computed.append(len(part))
            return real(part)

        monkeypatch.setattr(runtime, "_alone", noted)
        for probability in (runtime.infer(images), runtime.collect(runtime.submit(images))):
            np.testing.assert_array_equal(probability, 255 - images[..., 1])
    assert sorted(computed) == sorted(parts * 2)


def test_one_image_on_one_thread_is_not_computed_twice(
    runtime_class: type[CpuRuntime], darkness_onnx: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenVINO's graph for streams has a fixed batch, and an image alone in it takes the time of a full one."""
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    streamed = []
    with runtime_class(darkness_onnx, threads=1) as runtime:
        real = runtime._alone
        assert real is not None

        def noted(part: UInt8Array) -> UInt8Array:
            streamed.append(len(part))
            return real(part)

        monkeypatch.setattr(runtime, "_alone", noted)
        for count in (1, 2, 3):
            np.testing.assert_array_equal(runtime.infer(images[:count]), 255 - images[:count, ..., 1])
    assert streamed == ([2, 2, 1] if runtime.pads else [1, 2, 2, 1])


def test_a_batch_that_was_cancelled_when_its_runtime_was_closed_is_not_waited_for(darkness_onnx: Path) -> None:
    class Slow(OnnxRuntime):
        def _load_streams(self, model: bytes, threads: int) -> Call:
            call = super()._load_streams(model, threads)

            def slow(images: UInt8Array) -> UInt8Array:
                started.set()
                assert released.wait(60)
                return call(images)

            return slow

    started, released = threading.Event(), threading.Event()
    runtime = Slow(darkness_onnx, threads=1)
    tickets = [runtime.submit(np.zeros((2, 64, 64, 3), np.uint8)) for _ in range(2)]
    assert started.wait(60)
    closing = threading.Thread(target=runtime.close)
    closing.start()
    while not all(part.cancelled() for part in tickets[1]):
        time.sleep(0.01)
    with pytest.raises(CancelledError):
        runtime.collect(tickets[1])
    released.set()
    closing.join(60)
    assert runtime.collect(tickets[0]).shape == (2, 64, 64)
