"""An ONNX graph into a serialised engine, through TensorRT or TensorRT for RTX, strongly typed."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isicrt.engine.cache_folder import cache_file
from isicrt.engine.cuda_driver import Gpu
from isicrt.engine.errors import BuildError
from isicrt.engine.masks import replace_file
from isicrt.engine.tensorrt_api import Heard, TensorRt, known_capabilities, shared_logger
from isicrt.export.inspection import Layer, inspect_network, refuse_half, require_half

_SHOWN = 5

COMPATIBILITIES = {
    "none": "NONE",
    "ampere-plus": "AMPERE_PLUS",
    "same-compute-capability": "SAME_COMPUTE_CAPABILITY",
}
"""``--hardware-compatibility``, and what TensorRT calls it."""


@dataclass(frozen=True)
class Profile:
    """Batch sizes that an engine takes, and the one that it is tuned for."""

    smallest: int
    best: int
    largest: int

    def __post_init__(self) -> None:
        if not 1 <= self.smallest <= self.best <= self.largest:
            raise BuildError(f"batch sizes {self.smallest},{self.best},{self.largest}: expected 1 <= MIN <= OPT <= MAX")


@dataclass(frozen=True)
class Tuning:
    """What may be asked of a builder beside profile and precision. What is not asked for stays as TensorRT has it."""

    hardware_compatibility: str = "none"
    """A key of `COMPATIBILITIES`: which other GPUs a plan of `tensorrt` has to run on, at the price of speed."""
    compute_capabilities: tuple[str, ...] = ()
    """As ``"8.9"``, or ``("current",)``: for which GPUs TensorRT for RTX prepares its plan."""
    opt_level: int | None = None
    """0 to 5: how long the builder looks for faster kernels."""
    workspace_mib: int | None = None
    """Device memory that one layer may use for itself."""

    def to_words(self) -> list[str]:
        """The options of `isicrt build-engine` that ask for this; none for the defaults."""
        words = []
        if self.hardware_compatibility != "none":
            words += ["--hardware-compatibility", self.hardware_compatibility]
        if self.compute_capabilities:
            words += ["--compute-capability", ",".join(self.compute_capabilities)]
        if self.opt_level is not None:
            words += ["--opt-level", str(self.opt_level)]
        if self.workspace_mib is not None:
            words += ["--workspace", str(self.workspace_mib)]
        return words


NO_TUNING = Tuning()


@dataclass(frozen=True)
class Engine:
    """What the builder made."""

    plan: bytes
    layers: list[Layer]
    """Convolutions and matrix products with their types."""


def build_engine(
    trt: TensorRt,
    model: bytes,
    profile: Profile,
    *,
    half: bool,
    tuning: Tuning = NO_TUNING,
    gpu: Gpu | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Engine:
    """Parse, prove the precision, build.

    Ctrl-C stops the builder at its next step and comes out as KeyboardInterrupt; so does what `on_progress` raises.

    Args:
        trt: the flavour.
        model: an ONNX file's bytes, with one input.
        profile: batch sizes.
        half: refuse a network with a convolution that is not FP16; if not, one with any that is. The precision itself
            is in the graph.
        tuning: see there.
        gpu: names the timing cache, which only `tensorrt` has.
        on_progress: called with 0..1, from another thread.

    Raises:
        BuildError: the parser refuses the graph (its nodes and reasons are named), a layer is of the other precision,
            the flavour has no such tuning, or the builder fails.
    """
    require_tuning(trt, tuning)
    stop = threading.Event()
    report = on_progress or (lambda fraction: None)
    return _wait(lambda: _build(trt, model, profile, half, tuning, gpu, report, stop), stop)


def _wait(work: Callable[[], Engine], stop: threading.Event) -> Engine:
    """Do the work in a thread of its own. An exception here, as of Ctrl-C, sets `stop` and comes out when it ends.

    Python delivers Ctrl-C to the main thread alone. There it would be raised within whatever TensorRT calls, the
    logger or the monitor, and TensorRT prints what those raise and goes on.
    """
    begin = threading.Event()

    def begun() -> Engine:
        # A Ctrl-C while the thread is being started must not leave a builder behind that nobody waits for.
        begin.wait()
        if stop.is_set():
            raise BuildError("stopped before it began")
        return work()

    with ThreadPoolExecutor(1, thread_name_prefix="tensorrt-builder") as thread:
        building = None
        try:
            building = thread.submit(begun)
            begin.set()
            while not wait([building], timeout=0.1).done:  # not by `result`: the work may raise TimeoutError itself
                pass
            return building.result()
        except BaseException:
            stop.set()
            begin.set()
            raise
        finally:
            del (
                building
            )  # it holds the error, whose traceback holds this frame: a circle around all of TensorRT's objects


def _build(
    trt: TensorRt,
    model: bytes,
    profile: Profile,
    half: bool,
    tuning: Tuning,
    gpu: Gpu | None,
    on_progress: Callable[[float], None],
    stop: threading.Event,
) -> Engine:
    """`build_engine`, until `stop` is set."""
    module, log = trt.module, Heard(shared_logger(trt))
    try:
        builder = module.Builder(log.logger)
    except TypeError:  # what pybind11 makes of a null pointer: no driver, or one that is too old
        raise _failure(trt, log, "could not start its builder") from None
    network = _created(
        builder.create_network(1 << int(module.NetworkDefinitionCreationFlag.STRONGLY_TYPED)), "network", trt, log
    )
    parser = module.OnnxParser(network, log.logger)
    if not parser.parse(model):
        errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise BuildError(f"{trt.title} cannot parse the ONNX graph:\n" + "\n".join(errors[:_SHOWN]))
    layers = inspect_network(trt, network)
    (require_half if half else refuse_half)(layers)
    config = _created(builder.create_builder_config(), "builder configuration", trt, log)
    # TensorFloat-32 has the mantissa of half: what is called fp32 here is float32.
    config.clear_flag(module.BuilderFlag.TF32)
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    _tune(trt, log, config, tuning)
    _add_profile(trt, log, builder, network, config, profile)
    cache = _TimingCache(trt, config, gpu, tuning) if trt.flavour == "tensorrt" and gpu is not None else None
    failed: list[BaseException] = []
    monitor = _make_monitor(trt, BuildProgress(on_progress), stop, failed)
    config.progress_monitor = monitor
    try:
        serialised = builder.build_serialized_network(network, config)
    finally:  # a build that was stopped, or failed, has timed kernels too
        if cache is not None:
            cache.save()
    if failed:
        raise failed.pop()
    if serialised is None:
        failure = _failure(trt, log, "could not build the engine")
        if tuning.workspace_mib is not None:
            # What it says then ("no tactics", "out of memory") does not name the option.
            raise BuildError(
                f"{failure}\nIt was given a workspace of {tuning.workspace_mib} MiB: try a larger --workspace, or none"
            )
        try:
            raise failure
        finally:
            del failure  # else a circle as in `_wait`: its traceback holds this frame
    return Engine(bytes(serialised), layers)


def _failure(trt: TensorRt, log: Heard, what: str) -> BuildError:
    said = "\n".join(log.problems[-_SHOWN:]) or "it gave no reason"
    return BuildError(f"{trt.title} {what}:\n{said}")


def _created(thing: Any, what: str, trt: TensorRt, log: Heard) -> Any:
    if thing is None:
        raise _failure(trt, log, f"could not create a {what}")
    return thing


def require_tuning(trt: TensorRt, tuning: Tuning) -> None:
    """Raise BuildError if this flavour does not have what is asked for; the message says what to use instead."""
    if trt.flavour == "tensorrt" and tuning.compute_capabilities:
        raise BuildError(
            f"--compute-capability: {trt.title} builds for the GPU that it runs on. Use --hardware-compatibility for a "
            "plan that other GPUs can run, or --target tensorrt-rtx."
        )
    if trt.flavour != "tensorrt" and tuning.hardware_compatibility != "none":
        raise BuildError(
            f"--hardware-compatibility: {trt.title} has no such setting, its plans are finished on the GPU that runs "
            "them. Use --compute-capability to say which GPUs those are, or --target tensorrt."
        )
    known = known_capabilities(trt) if tuning.compute_capabilities else {}
    for capability in tuning.compute_capabilities:
        if capability not in known:
            raise BuildError(f"--compute-capability {capability}: {trt.title} knows {', '.join(known)}")
    if "current" in tuning.compute_capabilities and len(tuning.compute_capabilities) > 1:
        raise BuildError("--compute-capability: 'current' stands alone, it cannot be joined with others")


def require_known(trt: TensorRt, gpu: Gpu) -> None:
    """Raise BuildError if TensorRT for RTX builds nothing for this GPU: it would build a plan that it then refuses."""
    known = known_capabilities(trt)
    if gpu.compute_capability not in known:
        raise BuildError(
            f"--compute-capability current: {trt.title} knows {', '.join(known)}, and {gpu.name} has "
            f"{gpu.compute_capability}. Use --target tensorrt for it."
        )


def _tune(trt: TensorRt, log: Heard, config: Any, tuning: Tuning) -> None:
    module = trt.module
    if tuning.hardware_compatibility != "none":
        level = getattr(module.HardwareCompatibilityLevel, COMPATIBILITIES[tuning.hardware_compatibility])
        config.hardware_compatibility_level = level
    if tuning.compute_capabilities:
        known = known_capabilities(trt)
        config.num_compute_capabilities = len(tuning.compute_capabilities)
        for index, capability in enumerate(tuning.compute_capabilities):
            if not config.set_compute_capability(getattr(module.ComputeCapability, known[capability]), index):
                raise _failure(trt, log, f"does not take compute capability {capability}")
    if tuning.opt_level is not None:
        config.builder_optimization_level = tuning.opt_level
    if tuning.workspace_mib is not None:
        pool, wanted = module.MemoryPoolType.WORKSPACE, tuning.workspace_mib << 20
        config.set_memory_pool_limit(pool, wanted)
        if config.get_memory_pool_limit(pool) != wanted:  # a size that it refuses leaves the old one in place
            raise _failure(trt, log, f"does not take a workspace of {tuning.workspace_mib} MiB")


def _add_profile(trt: TensorRt, log: Heard, builder: Any, network: Any, config: Any, profile: Profile) -> None:
    if network.num_inputs != 1:
        raise BuildError(f"the ONNX graph has {network.num_inputs} inputs, expected one")
    tensor = network.get_input(0)
    batch, *rest = tuple(tensor.shape)
    if batch != -1:
        raise BuildError(f"'{tensor.name}' has a fixed batch of {batch}: export the model again with a symbolic batch")
    shapes = [(size, *rest) for size in (profile.smallest, profile.best, profile.largest)]
    optimisation = _created(builder.create_optimization_profile(), "profile", trt, log)
    optimisation.set_shape(tensor.name, *shapes)
    if config.add_optimization_profile(optimisation) < 0:
        raise _failure(trt, log, f"does not take the profile {shapes}")


class BuildProgress:
    """One number from the builder's nested phases.

    Each phase counts its steps; a phase within another is a part of the other's current step. Phases may end early
    and the builder works in several threads, so the number is made never to fall.
    """

    def __init__(self, report: Callable[[float], None]) -> None:
        self._report = report
        self._phases: dict[str, tuple[str | None, int, int]] = {}
        self._highest = 0.0
        self._lock = threading.Lock()

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of that many steps begins, within `parent` if that is given."""
        with self._lock:
            self._phases[phase] = (parent, max(1, steps), 0)

    def step(self, phase: str, step: int) -> None:
        """A step (the first is 0) is done."""
        with self._lock:
            if phase in self._phases:
                parent, steps, _ = self._phases[phase]
                self._phases[phase] = (parent, steps, min(step + 1, steps))
        self._tell()

    def finish(self, phase: str) -> None:
        """A phase has ended, whatever its steps say."""
        with self._lock:
            parent = self._phases.pop(phase, (None, 0, 0))[0]
            done = parent is None and not self._phases
        self._tell(1.0 if done else 0.0)

    def _tell(self, at_least: float = 0.0) -> None:
        with self._lock:
            roots = [self._fraction(name) for name, (parent, _, _) in self._phases.items() if parent is None]
            self._highest = max([self._highest, at_least, *roots])
            highest = self._highest
        self._report(highest)

    def _fraction(self, phase: str) -> float:
        _, steps, done = self._phases[phase]
        inner = [self._fraction(name) for name, (parent, _, _) in self._phases.items() if parent == phase]
        return min(1.0, (done + max(inner, default=0.0)) / steps)


def _make_monitor(trt: TensorRt, progress: BuildProgress, stop: threading.Event, failed: list[BaseException]) -> Any:
    """A monitor that ends the build when `stop` is set, or when `progress` raises; `failed` then has what it raised."""
    base = trt.module.IProgressMonitor

    def tell(call: Callable[..., None], *arguments: Any) -> None:
        if failed:
            return
        try:
            call(*arguments)
        except BaseException as error:  # TensorRT would print it and go on
            failed.append(error)

    class Monitor(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            tell(progress.start, phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            tell(progress.step, phase_name, step)
            return not failed and not stop.is_set()

        def phase_finish(self, phase_name: str) -> None:
            tell(progress.finish, phase_name)

    return Monitor()


class _TimingCache:
    """Kernel timings of earlier builds by this TensorRT on this GPU with this driver, in the user's cache folder."""

    def __init__(self, trt: TensorRt, config: Any, gpu: Gpu, tuning: Tuning) -> None:
        self._config = config
        self._path = timing_cache_path(trt.version, gpu, tuning)
        with contextlib.suppress(OSError):
            if self._path is not None and self._use(self._path.read_bytes()):
                return
        self._use(b"")

    def _use(self, content: bytes) -> bool:
        # Where the content is of another TensorRT, or damaged, there may be no cache of it, or one that is not taken.
        cache = self._config.create_timing_cache(content)
        return cache is not None and bool(self._config.set_timing_cache(cache, ignore_mismatch=False))

    def save(self) -> None:
        """Write it for the next build. A cache that is not there or cannot be written costs time, not the build."""
        cache = self._config.get_timing_cache()
        content = None if cache is None else cache.serialize()
        if content is None or self._path is None:
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, bytes(content))


def timing_cache_path(version: str, gpu: Gpu, tuning: Tuning = NO_TUNING) -> Path | None:
    """Where the timing cache of a TensorRT version, GPU, driver and tuning lies; None as `cache_file`."""
    parts = [version, gpu.name, f"sm{gpu.compute_capability}", f"cuda{gpu.cuda}", gpu.driver, *tuning.to_words()]
    key = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(part for part in parts if part))
    return cache_file(f"timing-{key}.bin")
