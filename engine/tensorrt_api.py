"""One door to TensorRT (`tensorrt`, 10.12 or newer, and 11) and to TensorRT for RTX (`tensorrt_rtx`).

Their Python APIs are the same in all that isicrt calls: networks are strongly typed, so that the types in the ONNX
graph are the types of the engine, and no precision flag (TensorRT 11 has none) is ever set.
"""

from __future__ import annotations

import importlib
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
    """A TensorRT logger that prints nothing and keeps errors and warnings in ``problems``, the newest last."""
    base = trt.module.ILogger

    class Log(base):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            base.__init__(self)
            self.problems: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (base.INTERNAL_ERROR, base.ERROR, base.WARNING):
                self.problems.append(message.strip())
                del self.problems[:-20]

    return Log()
