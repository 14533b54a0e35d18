from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from isicrt.engine import cuda_driver, tensorrt_api
from isicrt.engine.cuda_driver import Gpu, find_gpu
from isicrt.engine.errors import BuildError, MissingDependencyError, ModelError
from isicrt.engine.onnx_file import read_onnx_card
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.plan import read_plan, write_plan
from isicrt.engine.shipped import resolve
from isicrt.export.build import Built, Destination, Source, build, check_tuning, choose_target, open_source
from isicrt.export.onnx_export import Deployed
from isicrt.export.parity import Sample
from isicrt.export.tensorrt_build import Profile, Tuning
from tests.engine.stand_ins import failing_driver
from tests.export.tiny_network import tiny_card, tiny_network
from tests.tiny_models import plan_card, write_darkness_model

ONNX_ONLY = Destination(None, None, "")


def _build(source: Source, samples: list[Sample], out: Path, precision: str = "fp32", **changes: object) -> Built:
    settings = {
        "profile": Profile(1, 2, 4),
        "destination": ONNX_ONLY,
        "images": "rendered",
        "report": lambda stage, fraction: None,
    }
    return build(source, samples, precision=precision, out=out, **(settings | changes))  # type: ignore[arg-type]


@pytest.fixture
def checkpoint(deployed: Deployed) -> Source:
    """What `open_source` gives for a checkpoint."""
    return Source("runs/tiny/best.pt", Path("runs/tiny/best.pt"), tiny_card(versions={"dali": "2"}), deployed, None)


@pytest.fixture
def fp32_file(checkpoint: Source, samples: list[Sample], tmp_path: Path) -> Path:
    """A float32 model.onnx."""
    return _build(checkpoint, samples, tmp_path / "fp32").onnx


def test_a_checkpoint_becomes_a_file_that_segments(
    checkpoint: Source, samples: list[Sample], deployed: Deployed, tmp_path: Path
) -> None:
    import torch

    built = _build(checkpoint, samples, tmp_path / "new" / "folder")
    assert built.onnx == tmp_path / "new" / "folder" / "model.onnx"
    assert [p.name for p in built.onnx.parent.iterdir()] == ["model.onnx"]
    assert built.plan is None
    pixels = np.stack([sample.pixels for sample in samples])
    with OnnxRuntime(built.onnx) as runtime, torch.no_grad():
        assert runtime.card == built.card
        expected = deployed(torch.from_numpy(pixels)).numpy()
        assert np.abs(runtime.infer(pixels).astype(int) - expected).max() <= 1
    card = built.card
    assert card.precision == "fp32"
    assert card.parity["reference"] == "torch fp32"
    assert card.parity["images"] == card.parity["images_with_truth"] == 5
    assert card.versions["dali"] == "2"
    assert {"torch", "onnx", "isicrt"} <= set(card.versions)


def test_the_same_source_gives_the_same_bytes(fp32_file: Path, samples: list[Sample], tmp_path: Path) -> None:
    source = Source(
        "again", Path("again.pt"), tiny_card(versions={"dali": "2"}), Deployed(tiny_network(), tiny_card()).eval(), None
    )
    assert _build(source, samples, tmp_path / "again").onnx.read_bytes() == fp32_file.read_bytes()


def test_checkpoint_and_fp32_file_give_the_same_half_weights(
    checkpoint: Source, fp32_file: Path, samples: list[Sample], tmp_path: Path
) -> None:
    direct = _build(checkpoint, samples, tmp_path / "a", "fp16")
    by_file = _build(open_source(fp32_file, str(fp32_file)), samples, tmp_path / "b", "fp16")
    graphs = [onnx.load(str(built.onnx)).graph.SerializeToString(deterministic=True) for built in (direct, by_file)]
    assert graphs[0] == graphs[1]
    assert direct.card.precision == by_file.card.precision == "fp16"
    assert direct.card.parity["reference"] == "torch fp32"
    assert by_file.card.parity["reference"] == "the fp32 ONNX file"
    assert by_file.card.parity["largest_activation"] > 1
    assert direct.onnx.stat().st_size < fp32_file.stat().st_size


def test_scores_of_the_source_are_not_passed_off_as_those_of_its_conversion(
    fp32_file: Path, samples: list[Sample], tmp_path: Path
) -> None:
    source = open_source(fp32_file, "x")
    scored = dataclasses.replace(source, card=source.card.replace(scores={"test": {"jaccard": 0.9}}))
    converted = _build(scored, samples, tmp_path, "fp16")
    assert converted.card.scores == {"test, before the conversion to fp16": {"jaccard": 0.9}}


def test_nothing_to_convert_copies_the_file_and_keeps_its_record(
    fp32_file: Path, samples: list[Sample], tmp_path: Path
) -> None:
    built = _build(open_source(fp32_file, "x"), samples, tmp_path / "copy")
    assert built.parity is None
    assert built.onnx.read_bytes() == fp32_file.read_bytes()
    # In its own folder too.
    assert _build(open_source(fp32_file, "x"), samples, fp32_file.parent).onnx == fp32_file


def test_a_file_whose_weights_are_no_numbers_is_not_built(
    fp32_file: Path, samples: list[Sample], tmp_path: Path
) -> None:
    model = onnx.load(str(fp32_file))
    weights = next(tensor for tensor in model.graph.initializer if len(tensor.dims) == 4)
    broken = numpy_helper.to_array(weights).copy()
    broken.flat[0] = np.nan
    weights.CopyFrom(numpy_helper.from_array(broken, weights.name))
    onnx.save(model, tmp_path / "nan.onnx")
    with pytest.raises(BuildError, match="the fp32 ONNX file itself are not finite on rendered"):
        _build(open_source(tmp_path / "nan.onnx", "x"), samples, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_file_is_not_replaced_by_its_own_conversion(fp32_file: Path, samples: list[Sample]) -> None:
    before = fp32_file.read_bytes()
    with pytest.raises(BuildError, match=r"would be replaced by its own fp16 version.*--out"):
        _build(open_source(fp32_file, "x"), samples, fp32_file.parent, "fp16")
    assert fp32_file.read_bytes() == before


def test_half_does_not_go_back_to_float(fp32_file: Path, samples: list[Sample], tmp_path: Path) -> None:
    half = _build(open_source(fp32_file, "x"), samples, tmp_path / "half", "fp16").onnx
    with pytest.raises(BuildError, match="rounded to half"):
        _build(open_source(half, "x"), samples, tmp_path / "back", "fp32")


def test_a_gate_that_fails_leaves_nothing_behind(samples: list[Sample], tmp_path: Path) -> None:
    loud = Source("loud", Path("loud.pt"), tiny_card(), Deployed(tiny_network(gain=6e4), tiny_card()).eval(), None)
    with pytest.raises(BuildError, match="beyond 65504"):
        _build(loud, samples, tmp_path / "out", "fp16")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_a_build_error(
    checkpoint: Source, samples: list[Sample], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BuildError, match="cannot be written"):
        _build(checkpoint, samples, tmp_path / "file" / "out")


@pytest.mark.parametrize(("precision", "share"), [("fp16", "6 of 6 convolutions"), ("fp32", "0 of 6 convolutions")])
def test_a_plan_carries_all_that_is_known_of_it(
    fp32_file: Path, samples: list[Sample], tmp_path: Path, precision: str, share: str
) -> None:
    bindings = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    stages: list[tuple[str, float | None]] = []
    built = _build(
        open_source(fp32_file, "/this/machine's/-a folder/source.onnx"),
        samples,
        tmp_path / "plan",
        precision,
        destination=choose_target("tensorrt-rtx"),
        report=lambda stage, fraction: stages.append((stage, fraction)),
    )
    assert built.share == share
    assert built.plan == tmp_path / "plan" / "model.plan"
    card, plan = read_plan(built.plan)
    assert card.precision == precision
    builder = dict(card.builder)
    assert builder.pop("plan_sha256") == hashlib.sha256(plan).hexdigest()
    assert builder.pop("onnx_sha256") == hashlib.sha256(built.onnx.read_bytes()).hexdigest()
    expected = {
        "flavour": "tensorrt-rtx",
        "version": bindings.__version__,
        "source": "./-a folder/source.onnx",  # in a command it must not be an option
        "profile": [1, 2, 4],
        "half_layers": share,
    }
    assert expected.items() <= builder.items()
    with OnnxRuntime(built.onnx) as runtime:
        assert runtime.card == card.replace(builder={})
    assert stages[-1][1] is None or stages[-1][1] == 1.0
    assert builder["options"] == []
    assert builder["hardware_compatibility"] == "none"
    assert builder["compute_capabilities"] == []
    assert card.input_size == (64, 96)  # preprocessing
    assert {"resize", "colour_order", "mean", "std", "threshold"} <= set(card.to_dict())
    if precision == "fp16":
        assert card.parity["candidate"].startswith("the FP16 graph")
    if find_gpu() is None:
        assert [builder[key] for key in ("gpu", "compute_capability", "driver", "driver_cuda")] == [None] * 4
        assert built.notes == ["The plan was built but not run: no NVIDIA GPU is here."]


def test_the_tuning_is_in_the_card(darkness_onnx: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    built = _build(
        open_source(darkness_onnx, "the source"),
        [Sample("grey", np.full((64, 64, 3), 128, np.uint8))],
        tmp_path,
        destination=choose_target("tensorrt-rtx"),
        tuning=Tuning("none", ("8.0", "8.9"), 1, 256),
    )
    assert built.plan is not None
    builder = read_plan(built.plan)[0].builder
    assert builder["options"] == ["--compute-capability", "8.0,8.9", "--opt-level", "1", "--workspace", "256"]
    assert builder["compute_capabilities"] == ["8.0", "8.9"]


def test_a_plan_looks_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    write_darkness_model(tmp_path / "looking.onnx", second_look=0.9)
    built = _build(
        open_source(tmp_path / "looking.onnx", "the source"),
        [Sample("grey", np.full((64, 64, 3), 128, np.uint8))],
        tmp_path / "plan",
        destination=choose_target("tensorrt-rtx"),
    )
    assert built.plan is not None
    assert read_plan(built.plan)[0].second_look == 0
    assert read_onnx_card(built.onnx).second_look == 0.9


@pytest.mark.parametrize(
    ("target", "tuning", "message"),
    [
        ("onnx", Tuning(opt_level=2), "--opt-level: it is about TensorRT plans, and only ONNX is written here"),
        ("tensorrt-rtx", Tuning("ampere-plus"), "--hardware-compatibility: TensorRT for RTX"),
        ("tensorrt-rtx", Tuning("none", ("current",)), "that of the GPU in this machine, and none is here"),
    ],
)
def test_a_tuning_that_cannot_be_is_refused_before_anything_is_done(
    darkness_onnx: Path, samples: list[Sample], tmp_path: Path, target: str, tuning: Tuning, message: str
) -> None:
    if target != "onnx":
        pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    destination = dataclasses.replace(choose_target(target), gpu=None)
    with pytest.raises(BuildError, match=message):
        _build(open_source(darkness_onnx, "x"), samples, tmp_path / "out", destination=destination, tuning=tuning)
    assert not (tmp_path / "out").exists()


def test_what_tensorrt_for_rtx_does_not_know_is_not_built_for(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    here = dataclasses.replace(choose_target("tensorrt-rtx"), gpu=Gpu("NVIDIA H100", "9.0", "13.0"))
    with pytest.raises(BuildError, match=r"current: TensorRT for RTX .* NVIDIA H100 has 9\.0\. Use --target tensorrt"):
        check_tuning(here, Tuning("none", ("current",)))
    check_tuning(dataclasses.replace(here, gpu=Gpu("NVIDIA L40", "8.9", "13.0")), Tuning("none", ("current",)))
    check_tuning(here, Tuning("none", ("8.9",)))


def test_an_engine_that_fails_leaves_nothing_behind(fp32_file: Path, samples: list[Sample], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT for RTX is not installed (extra rtx)")
    source = open_source(fp32_file, "x")
    # A float32 graph whose card claims to be half: the proof of the layers has to find it.
    liar = dataclasses.replace(source, card=source.card.replace(precision="fp16"))
    with pytest.raises(BuildError, match="0 of 6 convolutions are HALF"):
        _build(liar, samples, tmp_path / "out", "fp16", destination=choose_target("tensorrt-rtx"))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.plan", b"plan", "a plan cannot be compiled again"),
        ("A.PLAN", b"plan", "a plan cannot be compiled again"),
        ("a.onnx", b"not a model", r"a\.onnx: not an ONNX file"),
        ("A.ONNX", b"not a model", r"A\.ONNX: not an ONNX file"),
        ("a.pt", b"not a checkpoint", "not a checkpoint"),
    ],
)
def test_sources_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=message):
        open_source(tmp_path / name, name)


def test_targets_on_this_machine() -> None:
    assert choose_target("onnx").flavour is None
    auto = choose_target("auto")
    assert auto.reason
    if tensorrt_api.installed("tensorrt-rtx") and find_gpu() is None:
        assert auto.flavour == "tensorrt-rtx"
        assert "no NVIDIA GPU is here" in auto.reason
    if not tensorrt_api.installed("tensorrt"):
        with pytest.raises(MissingDependencyError, match="gpu"):
            choose_target("tensorrt")


def test_a_machine_with_nothing_gets_onnx_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_api, "installed", lambda flavour: False)
    assert choose_target("auto").flavour is None
    assert "neither TensorRT nor TensorRT for RTX is installed" in choose_target("auto").reason


def test_a_driver_that_finds_no_gpu_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = failing_driver("cuInit", 802, b"CUDA_ERROR_SYSTEM_NOT_READY")
    monkeypatch.setattr(cuda_driver, "driver_library", lambda: driver)
    monkeypatch.setattr(tensorrt_api, "load", lambda flavour: None)
    monkeypatch.setattr(tensorrt_api, "installed", lambda flavour: flavour == "tensorrt-rtx")
    said = r"\(cuInit: CUDA_ERROR_SYSTEM_NOT_READY\)"
    with pytest.raises(BuildError, match=f"no NVIDIA GPU with a driver is here {said}. Build there"):
        choose_target("tensorrt")
    assert re.match(f"no NVIDIA GPU is here {said}; ", choose_target("auto").reason)


@pytest.mark.parametrize("by_path", [False, True])
@pytest.mark.parametrize("name", ["unet-light-int8", "unet-light-int8-careful"])
def test_an_int8_model_names_the_one_to_build_from(tmp_path: Path, name: str, by_path: bool) -> None:
    path = resolve(name)
    source = open_source(path, str(path) if by_path else name)
    for precision in ("fp16", "fp32"):
        with pytest.raises(BuildError, match=rf"is an int8 model.*isicrt build-engine unet-light --{precision}$"):
            _build(source, [], tmp_path, precision, destination=choose_target("onnx"))
    assert not list(tmp_path.iterdir())


def test_an_onnx_file_alone_says_that_the_plan_beside_it_is_another_ones(samples: list[Sample], tmp_path: Path) -> None:
    write_darkness_model(tmp_path / "alone.onnx", tiny_card().input_size)
    source = open_source(tmp_path / "alone.onnx", "x")
    sha = hashlib.sha256(source.path.read_bytes()).hexdigest()
    for recorded, notes in ((sha, 0), ("0" * 64, 1)):
        write_plan(tmp_path / "model.plan", plan_card(onnx_sha256=recorded), b"plan")
        built = _build(source, samples, tmp_path)
        assert len(built.notes) == notes
        assert (tmp_path / "model.plan").is_file()
    assert built.notes[0].startswith(f"{tmp_path / 'model.plan'} is of an earlier build and not of this ONNX file")
