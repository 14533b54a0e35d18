"""ModelCard: what a trained model is, and how its input is made and its output read.

The one thing that travels from the recipe to the mask. It is saved in the checkpoint, in the ONNX file's
metadata (key ``isicrt.card``) and in front of a TensorRT plan, so that training, export, `segment` and `bench`
cannot disagree about preprocessing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from isicrt.engine.errors import ModelError

METADATA_KEY = "isicrt.card"
FORMAT = 1

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

RESIZE_RULES = ("stretch",)
PRECISIONS = ("fp32", "fp16", "int8")
MAX_SIDE = 8192
MAX_NAME = 200
MAX_VIEWS = 64
MAX_SIGMA = 10
MAX_ZOOM = 10
CENTRE_SIGMA = 0.2
"""`ModelCard.centre_sigma` of models that isicrt trains, see ``docs/experiments.md``."""
_EXPORTED = re.compile(r"(-int8|-x\d+|-careful)+$")


@dataclass(frozen=True)
class ModelCard:
    """Everything that must be known about a model beside its weights. Immutable; plain JSON underneath."""

    name: str
    """Short name, as ``--model`` and tables show it."""
    architecture: str
    """``unet``, ``segnet-attention`` or ``segnet-attention-atrous``; free text for models made elsewhere."""
    input_height: int
    """Pixels."""
    input_width: int
    """Pixels."""
    resize: str = "stretch"
    """``stretch``: both sides are resized to the input's, aspect ratio ignored, with an antialiased triangle filter."""
    colour_order: str = "RGB"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Subtracted inside the graph, in units of [0, 1]."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Divided by inside the graph, in units of [0, 1]."""
    threshold: float = 0.5
    """A pixel whose probability is above this is lesion."""
    second_look: float = 0.0
    """In [0, 1): an image whose mask, at this card's threshold and before it is cleaned, is expected to have a lower
    Dice coefficient is looked at in further views, whose mean counts (`isicrt.engine.second_look`). 0: never."""
    second_look_zoom: float = 0.0
    """From 1 on: one of these views zooms in on a square around the mask, so many times as large. 0: none does."""
    keep_largest: bool = True
    """Keep only the largest connected component (8-connectivity): an ISIC mask is one lesion."""
    centre_sigma: float = 0.0
    """Above 0: a pixel counts exp(-d^2 / (2 centre_sigma^2)) where the largest is looked for, d its distance from the
    image's centre in units of the image's sides. What a photograph is of lies in its middle; dark corners, rulers and
    ink do not. 0: all pixels count alike."""
    fill_holes: bool = True
    """Fill background that the lesion encloses."""
    precision: str = "fp32"
    """Of the weights and of the arithmetic in the graph: ``fp32``, ``fp16``, or ``int8`` with float32 at both ends."""
    network: Mapping[str, Any] = field(default_factory=dict)
    """Arguments that build the torch module again: ``decoder_channels``, ``layout`` and so on. In a file that averages
    several views of each image (`isicrt.export.views`), their number: ``views``."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """Data, its SHA-256, number of images, recipe, epochs, fold, seed."""
    scores: Mapping[str, Any] = field(default_factory=dict)
    """By data set; each says its protocol and the number of images."""
    parity: Mapping[str, Any] = field(default_factory=dict)
    """How far the exported file is from the torch module on real images."""
    builder: Mapping[str, Any] = field(default_factory=dict)
    """For a plan: flavour, version, GPU, compute capability, profile, hashes."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Of the software that made it."""
    created: str = ""
    """ISO 8601 date."""

    def __post_init__(self) -> None:
        def reject(name: str, problem: str) -> None:
            raise ModelError(f"model card: field '{name}' {problem}")

        for name in ("input_height", "input_width"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_SIDE:
                reject(name, f"must be a whole number of pixels from 1 to {MAX_SIDE}, not {_shown(value)}")
        for name, allowed in (
            ("resize", RESIZE_RULES),
            ("precision", PRECISIONS),
            ("colour_order", ("RGB",)),
        ):
            if getattr(self, name) not in allowed:
                reject(name, f"must be one of {', '.join(allowed)}, not {_shown(getattr(self, name))}")
        for name in ("name", "architecture"):
            value = getattr(self, name)
            if not 0 < len(value) <= MAX_NAME or not value.isprintable():
                reject(name, f"must be printable text of 1 to {MAX_NAME} characters, not {_shown(value)}")
        for name in ("mean", "std"):
            value = getattr(self, name)
            if len(value) != 3 or not all(_is_number(v) for v in value):
                reject(name, f"must be three numbers, not {_shown(value)}")
        if min(self.std) <= 0:
            reject("std", f"must be positive, not {self.std!r}")
        if not _is_number(self.threshold) or not 0 < self.threshold < 1:
            reject("threshold", f"must lie between 0 and 1, not {_shown(self.threshold)}")
        if not _is_number(self.centre_sigma) or not 0 <= self.centre_sigma <= MAX_SIGMA:
            reject("centre_sigma", f"must lie between 0 and {MAX_SIGMA}, not {_shown(self.centre_sigma)}")
        if not _is_number(self.second_look) or not 0 <= self.second_look < 1:
            reject("second_look", f"must be at least 0 and below 1, not {_shown(self.second_look)}")
        if self.second_look and self.input_height != self.input_width:
            reject("second_look", "is for square inputs, which can be turned")
        zoom = self.second_look_zoom
        if not _is_number(zoom) or (zoom != 0 and not 1 <= zoom <= MAX_ZOOM):
            reject("second_look_zoom", f"must be 0 or lie between 1 and {MAX_ZOOM}, not {_shown(zoom)}")
        if zoom and not self.second_look:
            reject("second_look_zoom", "is for models with a second look")
        views = self.network.get("views", 1)
        if not isinstance(views, int) or isinstance(views, bool) or not 1 <= views <= MAX_VIEWS:
            reject("network", f"has views that must be a whole number from 1 to {MAX_VIEWS}, not {_shown(views)}")

    @property
    def clean_up(self) -> dict[str, Any]:
        """What is done to a mask, as arguments of `isicrt.engine.masks.restore_mask`."""
        return {
            "keep_largest": self.keep_largest,
            "fill_holes": self.fill_holes,
            "centre_sigma": self.centre_sigma,
        }

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.input_height, self.input_width

    @property
    def views(self) -> int:
        """Views of each image whose mean the graph gives, itself; 1 where it looks at an image as it is."""
        views: int = self.network.get("views", 1)
        return views

    def replace(self, **changes: Any) -> ModelCard:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with ``format`` first."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {"format": FORMAT} | {k: dict(v) if isinstance(v, Mapping) else v for k, v in fields.items()}

    def to_json(self) -> str:
        """One line of JSON; floats survive the round trip exactly."""
        return json.dumps(self.to_dict(), sort_keys=False, allow_nan=False)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ModelCard:
        """The inverse of `to_dict`.

        Raises:
            ModelError: a field is missing, unknown or of the wrong type; the message names it.
        """
        if not isinstance(data, Mapping):
            raise ModelError(f"model card: expected a JSON object, got {type(data).__name__}")
        data = dict(data)
        version = data.pop("format", None)
        if version != FORMAT:
            raise ModelError(
                f"model card: field 'format' is {version!r}; this isicrt reads {FORMAT}. "
                "Build the model again, or install the isicrt that made it."
            )
        known = {f.name: f for f in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - set(known)):
            raise ModelError(f"model card: unknown field {_shown(unknown[0])}")
        for name, f in known.items():
            required = f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
            if name not in data:
                if required:
                    raise ModelError(f"model card: field '{name}' is missing")
                continue
            data[name] = _checked(name, str(f.type), data[name])
        return cls(**data)

    @classmethod
    def from_json(cls, text: str | bytes) -> ModelCard:
        """The inverse of `to_json`. Raises ModelError, see `from_dict`."""
        try:
            data = json.loads(text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError) as error:
            raise ModelError(f"model card: not valid JSON: {error}") from None
        return cls.from_dict(data)


def exported_from(name: str) -> str:
    """The name of the model that `isicrt.export` made this one of, which is its name without what says how."""
    return _EXPORTED.sub("", name)


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number with more digits than any float
        return False


def _shown(value: object) -> str:
    """A value for a message, cut where a stranger's is long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _checked(name: str, annotation: str, value: Any) -> Any:
    """`value` if its JSON type fits the field's annotation; tuples come back from lists."""
    if annotation.startswith("tuple"):
        if not isinstance(value, (list, tuple)):
            raise ModelError(f"model card: field '{name}' must be a list, not {_shown(value)}")
        return tuple(value)
    expected: dict[str, type | tuple[type, ...]] = {
        "str": str,
        "int": int,
        "float": (int, float),
        "bool": bool,
    }
    kind = expected.get(annotation, Mapping)
    if not isinstance(value, kind) or (annotation in ("int", "float") and isinstance(value, bool)):
        raise ModelError(f"model card: field '{name}' must be of type {annotation.split('[')[0]}, not {_shown(value)}")
    return value
