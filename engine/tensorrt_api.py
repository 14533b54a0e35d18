"""One door to TensorRT (`tensorrt`, 10.12 or newer, and 11) and to TensorRT for RTX (`tensorrt_rtx`).

Their Python APIs are the same in all that isicrt calls: networks are strongly typed, so that the types in the ONNX
graph are the types of the engine, and no precision flag (TensorRT 11 has none) is ever set.
"""

from __future__ import annotations

import importlib
import threading
from dataclasses import dataclass
from typing import Any

from isicrt.engine.errors import MissingDependencyError

OLDEST_TENSORRT = (10, 12)


@dataclass(frozen=True)
class Flavour:
    """One of the two products."""

    title: str
    modules: tuple[str, ...]
    """Import names, tried in turn; the bindings' own name is what the two RTX wheels install."""
    extra: str
    """Of isicrt."""


FLAVOURS = {
    "tensorrt": Flavour("TensorRT", ("tensorrt",), "gpu"),
    "tensorrt-rtx": Flavour("TensorRT for RTX", ("tensorrt_rtx", "tensorrt_rtx_bindings"), "rtx"),
}


@dataclass(frozen=True)
class TensorRt:
    """An imported flavour."""

    flavour: str
    """A key of `FLAVOURS`."""
    module: Any
    version: str

    @property
    def title(self) -> str:
        """For messages: product and version."""
        return f"{FLAVOURS[self.flavour].title} {self.version}"


def load(flavour: str) -> TensorRt:
    """Import a flavour.

    Raises:
        MissingDependencyError: it is not installed, its libraries are missing, or it is too old.
    """
    wanted = FLAVOURS[flavour]
    causes = []
    for name in wanted.modules:
        try:
            module = importlib.import_module(name)
        except (ImportError, OSError) as error:  # OSError: the bindings are there, their libraries are not
            causes.append(str(error))
            continue
        if not hasattr(module, "Builder"):  # a folder or a stub of that name
            causes.append(f"'{name}' is there but has no Builder")
            continue
        version = str(module.__version__)
        if flavour == "tensorrt" and tuple(int(n) for n in version.split(".")[:2]) < OLDEST_TENSORRT:
            oldest = ".".join(map(str, OLDEST_TENSORRT))
            raise MissingDependencyError(f"TensorRT {oldest} or newer", wanted.extra, f"{version} is installed")
        return TensorRt(flavour, module, version)
    raise MissingDependencyError(wanted.title, wanted.extra, "; ".join(causes))


def installed(flavour: str) -> bool:
    """Whether `load` would succeed."""
    try:
        load(flavour)
    except MissingDependencyError:
        return False
    return True


def known_capabilities(trt: TensorRt) -> dict[str, str]:
    """Compute capabilities that TensorRT for RTX can be told, and its names of them: ``{"8.9": "SM89"}``."""
    names = [name for name in trt.module.ComputeCapability.__members__ if name.startswith("SM")]
    return {f"{name[2:-1]}.{name[-1]}": name for name in names} | {"current": "CURRENT"}


def make_logger(trt: TensorRt) -> Any:
    """A TensorRT logger that prints nothing and keeps the last errors and warnings for `Heard`."""
    base = trt.module.ILogger

    class Log(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)
            self.count = 0
            self.kept: list[tuple[bool, str]] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (base.INTERNAL_ERROR, base.ERROR, base.WARNING):
                self.kept.append((severity != base.WARNING, message.strip()))
                del self.kept[:-_KEPT]
                self.count += 1

    return Log()


def shared_logger(trt: TensorRt) -> Any:
    """The process's logger for a flavour. TensorRT has one for all of its objects, the first that it is given: another
    one hears of nothing but that, and one that is gone is called all the same.
    """
    with _lock:
        module, log = _loggers.get(id(trt.module), (trt.module, None))
        if log is None:
            log = make_logger(trt)
            _loggers[id(module)] = module, log
    return log


_KEPT = 20
_lock = threading.Lock()
_loggers: dict[int, tuple[Any, Any]] = {}  # the module too: another must not get its number


class Heard:
    """What TensorRT says from now on, in whatever thread; of it the last 20 errors and warnings.

    Args:
        logger: of `shared_logger`; it is what TensorRT is given.
    """

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self.forget()

    def forget(self) -> None:
        """What was said so far is of no matter to what is called next."""
        self._before = self.logger.count

    @property
    def problems(self) -> list[str]:
        """Errors and warnings, the newest last."""
        return [message for _, message in self._kept()]

    @property
    def reason(self) -> str:
        """The newest error; where there is none, the newest warning; where there is none either, empty."""
        kept = self._kept()
        said = [message for is_error, message in kept if is_error] or [message for _, message in kept]
        return said[-1] if said else ""

    def _kept(self) -> list[tuple[bool, str]]:
        new: int = self.logger.count - self._before
        return list(self.logger.kept[-new:]) if new else []
