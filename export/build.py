"""From a checkpoint or an ONNX file to ``model.onnx`` and ``model.plan``, proven before anything is written."""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from isicrt._version import __version__
from isicrt.engine import tensorrt_api
from isicrt.engine.card import ModelCard
from isicrt.engine.cuda_driver import Gpu, driver_problem, find_gpu
from isicrt.engine.errors import BuildError, MissingDependencyError, ModelError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.masks import replace_file
from isicrt.engine.plan import read_plan
from isicrt.engine.rebuild import plan_source

try:
    import onnx
except ImportError as error:
    raise MissingDependencyError("onnx", "train", str(error)) from error

from isicrt.export import half, onnx_graph, trials
from isicrt.export.enlargement import enlarge_by_resize
from isicrt.export.inspection import half_share
from isicrt.export.model_folder import ONNX_NAME, PLAN_NAME, alone, replace_both, trial_file, writing
from isicrt.export.parity import (
    Compute,
    Levels,
    OnnxLevels,
    Parity,
    Sample,
    measure_parity,
    require_finite,
    require_parity,
)
from isicrt.export.second_look import with_second_look
from isicrt.export.tensorrt_build import (
    NO_TUNING,
    Engine,
    Profile,
    Tuning,
    build_engine,
    require_known,
    require_tuning,
)

if TYPE_CHECKING:
    from isicrt.export.onnx_export import Deployed

_REHEARSAL = "the FP16 graph (rounded to half after every operation, summed in float32)"
TARGETS = ("auto", *tensorrt_api.FLAVOURS, "onnx")

Report = Callable[[str, float | None], None]
"""Told what is being done, and how much of it is done (0..1) or None where nobody knows."""


@dataclass(frozen=True)
class Source:
    """What is compiled."""

    name: str
    """As the user would name it again: a path or a shipped model."""
    path: Path
    card: ModelCard
    deployed: Deployed | None
    """The torch module, from a checkpoint."""
    graph: onnx.ModelProto | None
    """From an ONNX file."""
    content: bytes = b""
    """The ONNX file, as it was when `graph` was read."""


@dataclass(frozen=True)
class Destination:
    """What to build a plan with."""

    flavour: str | None
    """A key of `tensorrt_api.FLAVOURS`; None for ONNX only."""
    gpu: Gpu | None
    reason: str
    """Why this one, for people; empty where the user chose it."""


@dataclass(frozen=True)
class Built:
    """What was written and how it was proven."""

    card: ModelCard
    onnx: Path
    plan: Path | None
    parity: Parity | None
    """None where nothing was converted."""
    plan_parity: Parity | None
    """Of the plan itself, where it could be run."""
    share: str
    """Layers in half, for people; empty without a plan."""
    seconds: dict[str, float]
    """By stage."""
    notes: list[str] = field(default_factory=list)


def open_source(path: Path, name: str) -> Source:
    """Load a checkpoint of `isicrt train`, or an ONNX file with a card.

    Raises:
        ModelError: neither, or damaged.
        MissingDependencyError: a checkpoint needs torch.
    """
    if path.suffix.lower() == ".onnx":
        with onnx_graph.open_model(path) as (runtime, content):
            card = runtime.card
        graph = onnx.load_from_string(content)
        onnx_graph.check_batch_is_symbolic(graph)
        return Source(name, path, card, None, graph, content)
    if path.suffix.lower() == ".plan":
        raise ModelError(
            f"{path}: a plan cannot be compiled again. Give the checkpoint or the .onnx it was built from."
        )
    try:
        from isicrt.export.onnx_export import Deployed
        from isicrt.trainer.checkpoint import load_model
    except ImportError as error:
        raise MissingDependencyError("PyTorch", "train", str(error)) from error
    network, card = load_model(path)
    return Source(name, path, card, Deployed(network, card).eval(), None)


def choose_target(target: str) -> Destination:
    """What `target` means on this machine.

    Raises:
        MissingDependencyError: a target was named and is not installed.
        BuildError: TensorRT was named, which builds on the GPU that runs the plan, and there is none.
    """
    gpu = find_gpu()
    said = f" ({problem})" if gpu is None and (problem := driver_problem()) else ""
    if target == "onnx":
        return Destination(None, gpu, "")
    if target == "tensorrt":
        tensorrt_api.load(target)
        if gpu is None:
            raise BuildError(
                "--target tensorrt: TensorRT builds on the GPU that will run the plan, and no NVIDIA GPU with a driver "
                f"is here{said}. Build there, or use --target tensorrt-rtx or --target onnx here."
            )
        return Destination(target, gpu, "")
    if target == "tensorrt-rtx":
        tensorrt_api.load(target)
        return Destination(target, gpu, "")
    if gpu is not None and tensorrt_api.installed("tensorrt"):
        return Destination("tensorrt", gpu, f"TensorRT is installed and {gpu.name} is here")
    if tensorrt_api.installed("tensorrt-rtx"):
        why = "TensorRT is not installed" if gpu is not None else f"no NVIDIA GPU is here{said}"
        return Destination("tensorrt-rtx", gpu, f"{why}; TensorRT for RTX is installed and builds anywhere")
    return Destination(None, gpu, "neither TensorRT nor TensorRT for RTX is installed (extras gpu, rtx): ONNX only")


def build(
    source: Source,
    samples: Sequence[Sample],
    *,
    precision: str,
    profile: Profile,
    destination: Destination,
    out: Path,
    images: str,
    report: Report,
    tuning: Tuning = NO_TUNING,
) -> Built:
    """Export, convert, compare, build, and only then write.

    Args:
        source: from `open_source`.
        samples: images of the parity gate, at the card's input size.
        precision: ``fp32`` or ``fp16``.
        profile: batch sizes of the plan.
        destination: from `choose_target`.
        out: folder; made if it is not there.
        images: what the samples are, for people.
        report: called as the work goes on.
        tuning: of the builder.

    Raises:
        BuildError: see the steps; nothing is written then.
    """
    check_tuning(destination, tuning)
    clock = _Clock()
    report("export to ONNX", None)
    exact = _exact_graph(source, precision)
    converted = precision != source.card.precision
    graph = half.to_half(exact) if converted else exact
    clock.lap("export")

    reference = _reference(source, exact)
    parity = None
    if converted or source.deployed is not None:
        report("compare on images", 0.0)
        rehearse = precision == "fp16"
        parity = measure_parity(
            reference,
            (_REHEARSAL if rehearse else "the ONNX graph", OnnxLevels(exact, rehearse_half=rehearse)),
            samples,
            source.card,
            source=images,
            on_progress=lambda fraction: report("compare on images", fraction),
        )
        require_parity(parity)
        clock.lap("parity")
    card, onnx_bytes = _finished(source, graph, precision, parity)
    onnx_path = out / ONNX_NAME
    if onnx_path.is_file() and onnx_path.samefile(source.path) and onnx_bytes != source.path.read_bytes():
        raise BuildError(f"{onnx_path}: would be replaced by its own {precision} version. Choose another --out")
    report("run the ONNX file", None)
    with trial_file(out, ONNX_NAME) as path:
        with writing(onnx_path):
            path.write_bytes(onnx_bytes)
        trials.check_batches(path, (1, 3, min(profile.largest, 32)))
    if parity is None:
        require_finite(reference, samples, source=images)
    clock.lap("check")
    if destination.flavour is None:
        with writing(onnx_path), alone(out):
            replace_file(onnx_path, onnx_bytes)
        return Built(card, onnx_path, None, parity, None, "", clock.seconds, _old_plan(out / PLAN_NAME, onnx_bytes))

    engine, card = _plan(source, card, onnx_bytes, profile, tuning, destination, report)
    clock.lap("build")
    plan_parity, note = None, "The plan was built but not run: no NVIDIA GPU is here."
    if destination.gpu is not None:
        report("compare the plan on images", None)
        plan_parity, note = trials.plan_parity(card, engine.plan, reference, samples, images, out)
        clock.lap("plan parity")
    if plan_parity is not None:
        card = card.replace(builder=dict(card.builder) | {"parity": plan_parity.to_dict()})
    replace_both(onnx_path, onnx_bytes, out / PLAN_NAME, card, engine.plan)
    share = half_share(engine.layers)
    return Built(card, onnx_path, out / PLAN_NAME, parity, plan_parity, share, clock.seconds, [note] if note else [])


def _old_plan(plan: Path, onnx_bytes: bytes) -> list[str]:
    """What is to be said of a plan that lies beside an ONNX file which was written alone. It is not ours to remove."""
    if not plan.is_file():
        return []
    with contextlib.suppress(ModelError):
        if read_plan(plan)[0].builder.get("onnx_sha256") == hashlib.sha256(onnx_bytes).hexdigest():
            return []
    return [f"{plan} is of an earlier build and not of this ONNX file: remove it, or build it again too."]


class _Clock:
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = now - self._start
        self._start = now


def _exact_graph(source: Source, precision: str) -> onnx.ModelProto:
    """The graph before any conversion: float32, unless the source is a half ONNX file."""
    if source.deployed is not None:
        from isicrt.export.onnx_export import export_onnx

        return export_onnx(source.deployed, source.card)
    assert source.graph is not None
    if source.card.precision == "int8":
        raise BuildError(
            f"{source.path}: is an int8 model, made for ONNX Runtime on CPUs; TensorRT's parser takes no int8 graph of "
            f"that kind, and its weights cannot be brought back. Build from the model that it was made of: "
            f"isicrt build-engine {plan_source(source.path, source.card)} --{precision}"
        )
    if source.card.precision == "fp16" and precision == "fp32":
        raise BuildError(
            f"{source.path}: its weights were rounded to half, and fp32 would not bring them back. Build with --fp16, "
            "or from the checkpoint."
        )
    return source.graph


def _reference(source: Source, exact: onnx.ModelProto) -> tuple[str, Compute]:
    """What the result has to agree with: torch if there is a checkpoint, else the ONNX file as it came."""
    if source.deployed is None:
        return f"the {source.card.precision} ONNX file", OnnxLevels(exact)
    import torch

    deployed = source.deployed

    def levels(images: UInt8Array) -> Levels:
        with torch.inference_mode():
            result: Levels = deployed.levels(torch.from_numpy(images)).numpy()
        return result

    return "torch fp32", levels


def _finished(source: Source, graph: onnx.ModelProto, precision: str, parity: Parity | None) -> tuple[ModelCard, bytes]:
    """The card of the ONNX file, and the file; both as they came where nothing was converted."""
    if parity is None:
        return source.card, source.content
    versions = dict(source.card.versions) | {"isicrt": __version__, "onnx": onnx.__version__}
    if source.deployed is not None:
        import torch

        versions["torch"] = torch.__version__
    scores = source.card.scores
    if precision != source.card.precision:
        # They are another file's: this one has not been scored.
        scores = {f"{data_set}, before the conversion to {precision}": value for data_set, value in scores.items()}
    card = source.card.replace(precision=precision, parity=parity.to_dict(), versions=versions, scores=scores)
    onnx_graph.set_card(graph, card)
    return card, graph.SerializeToString(deterministic=True)


def _portable(name: str) -> str:
    """A source as it was named, but for folders of this machine: whoever is given the plan is given its card."""
    portable = "/".join(Path(name).parts[-2:]) if Path(name).is_absolute() else name
    return f"./{portable}" if portable.startswith("-") else portable  # in a command it would be an option


def check_tuning(destination: Destination, tuning: Tuning) -> None:
    """Raise BuildError if what is built there has no such tuning: before anything is exported and compared."""
    if destination.flavour is not None:
        require_tuning(tensorrt_api.load(destination.flavour), tuning)
    elif words := tuning.to_words():
        raise BuildError(f"{words[0]}: it is about TensorRT plans, and only ONNX is written here")
    if "current" in tuning.compute_capabilities:
        if destination.gpu is None:
            raise BuildError("--compute-capability current: it is that of the GPU in this machine, and none is here")
        require_known(tensorrt_api.load("tensorrt-rtx"), destination.gpu)


def _plan(
    source: Source,
    card: ModelCard,
    onnx_bytes: bytes,
    profile: Profile,
    tuning: Tuning,
    destination: Destination,
    report: Report,
) -> tuple[Engine, ModelCard]:
    """The engine, and the card that goes in front of it."""
    assert destination.flavour is not None
    trt = tensorrt_api.load(destination.flavour)
    title = f"build with {trt.title}"
    report(title, 0.0)
    graph = onnx.load_from_string(onnx_bytes)
    enlarge_by_resize(graph)
    engine = build_engine(
        trt,
        graph.SerializeToString(),
        profile,
        half=card.precision == "fp16",
        tuning=tuning,
        gpu=destination.gpu,
        on_progress=lambda fraction: report(title, fraction),
    )
    gpu = destination.gpu
    builder = {
        "flavour": destination.flavour,
        "version": trt.version,
        "source": _portable(source.name),
        "onnx_sha256": hashlib.sha256(onnx_bytes).hexdigest(),
        "profile": [profile.smallest, profile.best, profile.largest],
        "half_layers": half_share(engine.layers),
        "gpu": gpu.name if gpu else None,
        "compute_capability": gpu.compute_capability if gpu else None,
        "driver": gpu.driver if gpu else None,
        "driver_cuda": gpu.cuda if gpu else None,
        "options": tuning.to_words(),
        "hardware_compatibility": tuning.hardware_compatibility,
        "compute_capabilities": list(tuning.compute_capabilities),
    }
    # TensorRT's runtime does not look again, and on the GPU's way no probabilities come back.
    return engine, with_second_look(card, 0.0).replace(builder=builder)
