"""For a plan that does not run: the command that builds it again, or the ONNX file that it was built of."""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from isicrt.engine import shipped
from isicrt.engine.card import ModelCard, exported_from
from isicrt.engine.cuda_driver import Gpu
from isicrt.engine.errors import ModelError
from isicrt.engine.onnx_file import MAX_BYTES, read_onnx_card
from isicrt.engine.tensorrt_api import FLAVOURS, TensorRt, known_capabilities

_PLAN, _ONNX = "model.plan", "model.onnx"
"""What `build-engine` writes."""
_OLDEST_TARGET = 8.0
"""TensorRT for RTX prepares a plan for all that it knows from this compute capability on, unless it is told."""
_MOST_TEXT = 1000
_OPTIONS = {
    "--hardware-compatibility": re.compile("ampere-plus|same-compute-capability"),
    "--compute-capability": re.compile(r"current|\d+\.\d(,\d+\.\d)*", re.ASCII),
    "--opt-level": re.compile("[0-5]"),
    "--workspace": re.compile(r"[1-9][0-9]{0,6}"),
}
"""What `isicrt.export.tensorrt_build.Tuning` asks for. Nothing else is put into a command that somebody may paste."""
CHECKPOINT = "CHECKPOINT"
"""Stands in a command for a file that nobody here knows."""


def builder_problem(builder: Mapping[str, Any]) -> str:
    """What is wrong with the part of a plan's card that its builder wrote; empty where it can be relied upon.

    A stranger may have written it, and a later isicrt.
    """
    flavour = builder.get("flavour")
    if not isinstance(flavour, str) or flavour not in FLAVOURS:
        return f"built by {_shown(flavour)}; this isicrt knows {', '.join(FLAVOURS)}"
    if not _is_text(builder.get("version")):
        return f"its builder's version must be text, not {_shown(builder.get('version'))}"
    profile = builder.get("profile")
    if not _is_profile(profile):
        return f"its builder's profile must be three batch sizes, not {_shown(profile)}"
    for name in ("options", "compute_capabilities"):
        value = builder.get(name, [])
        if not isinstance(value, list) or not all(map(_is_text, value)):
            return f"its builder's {name} must be a list of texts, not {_shown(value)}"
    if not _are_options(builder.get("options", [])):
        return f"its builder's options must be those of `isicrt build-engine`, not {_shown(builder['options'])}"
    source = builder.get("source")
    if source is not None and not _is_source(source):
        return f"its builder's source must be text that does not begin with -, not {_shown(source)}"
    for name in ("onnx_sha256", "gpu", "compute_capability", "hardware_compatibility"):
        value = builder.get(name)
        if value is not None and not _is_text(value):
            return f"its builder's {name} must be text, not {_shown(value)}"
    return ""


def _is_text(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MOST_TEXT and value.isprintable()


def _is_source(value: object) -> bool:
    return _is_text(value) and not str(value).startswith("-")  # else it is an option of whatever command it stands in


def _are_options(words: Sequence[str]) -> bool:
    """Whether a list is of the names in `_OPTIONS` and their values, in turn."""
    pairs = zip(words[::2], words[1::2], strict=False)
    return len(words) % 2 == 0 and all(name in _OPTIONS and _OPTIONS[name].fullmatch(value) for name, value in pairs)


def _is_profile(value: object) -> bool:
    if not isinstance(value, list) or len(value) != 3 or any(type(size) is not int for size in value):
        return False
    return bool(1 <= value[0] <= value[1] <= value[2])


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def targets(trt: TensorRt, builder: Mapping[str, Any]) -> list[str]:
    """The compute capabilities that a plan of TensorRT for RTX was built for, as ``"8.9"``.

    Args:
        trt: the version that built it.
        builder: of its card, without a `builder_problem`.
    """
    asked = list(builder.get("compute_capabilities") or ())
    if asked == ["current"]:
        asked = [str(builder.get("compute_capability"))]
    return asked or [name for name in known_capabilities(trt) if name != "current" and float(name) >= _OLDEST_TARGET]


def options_for(builder: Mapping[str, Any], gpu: Gpu | None, trt: TensorRt | None = None) -> list[str]:
    """``--target`` and the options that a plan was built with, without those that no plan for `gpu` can be built with.

    Args:
        builder: of the plan's card, without a `builder_problem`.
        gpu: that the new plan is for; None to build the same again.
        trt: TensorRT for RTX, where it has said that this plan does not run on `gpu`.
    """
    flavour = str(builder["flavour"])
    words = [str(word) for word in builder.get("options") or ()]
    if gpu is not None and float(gpu.compute_capability) < _OLDEST_TARGET:
        words = _without(words, "--hardware-compatibility", "ampere-plus")
    if gpu is not None and trt is not None:
        words = _without(words, "--compute-capability")
        here = gpu.compute_capability
        if here in known_capabilities(trt) and here not in targets(trt, builder):
            words = ["--compute-capability", here, *words]
        else:
            flavour = "tensorrt"  # which builds for whatever GPU it runs on
    return ["--target", flavour, *words]


def _without(words: Sequence[str], option: str, value: str = "") -> list[str]:
    """Options and their values, in turn, without one of them: whatever its value is, or only where it is `value`."""
    pairs = zip(words[::2], words[1::2], strict=False)
    return [word for pair in pairs for word in pair if pair[0] != option or value not in ("", pair[1])]


def rebuild_advice(card: ModelCard, path: Path, *, gpu: Gpu | None = None, trt: TensorRt | None = None) -> str:
    """A sentence that ends with the command line that builds a plan again, and says what has to be known to follow it.

    It is built of the ONNX file beside the plan if that is the one that it was built of, else of what was named then.

    Args:
        card: the plan's, without a `builder_problem`.
        path: the plan. The new one goes into its folder, or, where it has another name than `build-engine` gives, into
            one of its own: others may be there.
        gpu, trt: see `options_for`.
    """
    source, out, found = _places(card, path)
    known = [] if path.name == _PLAN else [f"as {out / _PLAN}"]
    known += [] if found else [f"from where {source} lies"]
    sizes = ",".join(map(str, card.builder["profile"]))
    words = [source, f"--{card.precision}", "--batch-size", sizes, *options_for(card.builder, gpu, trt)]
    command = shlex.join(["isicrt", "build-engine", *words, "--out", str(out)])
    return f"Build it again{_listed(known)} with: {command}"


def plan_source(path: Path, card: ModelCard | None = None) -> str:
    """What `build-engine` is given for a plan of an ONNX file's model: the file, or the name of one that ships.

    No plan is built of an int8 file: there it is the model that ships that it was made of, else `CHECKPOINT`.

    Args:
        path: of the ONNX file.
        card: the file's, if it is known.
    """
    with suppress(ModelError):
        card = card or read_onnx_card(path)
    if card is not None and card.precision == "int8":
        name = exported_from(card.name)
        return name if name in shipped.names() else CHECKPOINT
    with suppress(ModelError, OSError):
        if shipped.resolve(path.stem).samefile(path):
            return path.stem
    return str(path)


def advice_without_builder(path: Path, card: ModelCard | None = None) -> str:
    """As `rebuild_advice`, where the card, or what the builder wrote there, is lost: a guess by the file beside it."""
    source, precision = CHECKPOINT, "--fp16 (or --fp32, and the options that it was built with)"
    beside = path.with_suffix(".onnx")  # where `build-engine` put it
    with suppress(ModelError):
        found = read_onnx_card(beside)
        if found.precision != "int8":  # else it is another's
            card, source = found, str(beside)
    if card is not None:
        if source == CHECKPOINT and _is_source(card.builder.get("source")):
            source = card.builder["source"]
        if card.precision != "int8":
            precision = f"--{card.precision} (and the options that it was built with)"
    return f"Build it again with: {shlex.join(['isicrt', 'build-engine', source])} {precision}"


def _places(card: ModelCard, path: Path) -> tuple[str, Path, bool]:
    """What a plan is built of again, the folder for the new one, and whether the first can be found from here."""
    out = path.parent if path.name == _PLAN else path.with_suffix("")
    if (beside := onnx_beside(card, path)) is not None:
        return str(beside), out, True
    source = str(card.builder.get("source", CHECKPOINT))
    with suppress(OSError):  # a name that is too long
        if not Path(source).suffix or Path(source).is_file():  # without one it is the name of a model that ships
            return source, out, True
    return source, out.absolute(), False


def _listed(texts: Sequence[str]) -> str:
    return f", {', '.join(texts)}," if texts else ""


def onnx_beside(card: ModelCard, path: Path) -> Path | None:
    """The ONNX file that a plan was built of, if it still lies beside it: by its SHA-256, not by its name alone."""
    recorded = card.builder.get("onnx_sha256")
    for beside in (path.with_suffix(".onnx"), path.with_name(_ONNX)):
        with suppress(OSError):
            known = beside.is_file() and beside.stat().st_size <= MAX_BYTES
            if known and hashlib.sha256(beside.read_bytes()).hexdigest() == recorded:
                return beside
    return None


def onnx_advice(card: ModelCard, path: Path) -> str:
    """What runs where a plan does not, as a sentence without its full stop."""
    if (beside := onnx_beside(card, path)) is not None:
        return f"Use {beside}, the ONNX file that it was built of, which runs everywhere"
    other = path.with_suffix(".onnx")
    known = f" ({other} is another one)" if other.is_file() and card.builder.get("onnx_sha256") else ""
    return f"Use the ONNX file that it was built of{known}, which runs everywhere"
