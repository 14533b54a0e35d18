"""Recipe: every choice that makes a model, in one YAML file. Settings that cannot be used are named, with the file."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from isicrt.engine.errors import SettingsError
from isicrt.trainer.losses import mix
from isicrt.trainer.models import ARCHITECTURES, LAYOUTS, STRIDE

FROM_START = "start"
"""In place of an architecture: that of the model which ``--start-from`` names, see `isicrt.trainer.start`."""
_FOLDER = Path(__file__).resolve().parent / "recipes"
ARTEFACTS = ("hair", "ruler", "ink", "sticker", "bubbles", "vignette", "frame")
T = TypeVar("T")


def _require(condition: bool, name: str, rule: str) -> None:
    if not condition:
        raise SettingsError(f"setting '{name}' {rule}")


def _require_file_name(name: str, setting: str) -> None:
    fit = bool(name.strip()) and len(name) <= 100 and name.isprintable() and not set(name) & set('/\\:*?"<>|')
    _require(fit, setting, 'becomes the name of a file: at most 100 characters, none of / \\ : * ? " < > |')


@dataclass(frozen=True)
class Augmentation:
    """Online augmentation; every amount 0 (or 1 for `min_zoom` and `max_aspect`) leaves images as they are."""

    min_zoom: float = 0.6
    """The shown window's side as a share of the image's, at least. Uniform in its logarithm."""
    max_zoom: float = 1.0
    """At most. Above 1 the image is shown smaller, with a border around it."""
    max_aspect: float = 1.4
    """Aspect jitter of the crop: its sides' ratio lies in [1/max_aspect, max_aspect]."""
    flip: bool = True
    """Left-right and up-down, each half of the time."""
    rotate_probability: float = 0.5
    max_angle: float = 180.0
    """Degrees; uniform in both directions."""
    max_shear: float = 0.0
    """Degrees; uniform in both directions."""
    border: str = "black"
    """What comes in at edges: ``black``, background in the mask; or ``reflect``, image and mask mirrored."""
    brightness: float = 0.25
    contrast: float = 0.25
    saturation: float = 0.3
    """Factors, uniform in [1 - x, 1 + x]."""
    hue: float = 12.0
    """Degrees, uniform in both directions."""
    max_noise: float = 10.0
    """Standard deviation of the Gaussian noise in levels of 255, uniform from 0."""
    grey: float = 0.0
    """Probability that an image loses its colour, before `cast` gives all of it one."""
    cast: float = 0.0
    """Colour cast: a factor for each channel, uniform in [1 - x, 1 + x]."""
    max_blur: float = 0.0
    """Standard deviation of a Gaussian blur in pixels, uniform from 0."""
    artefacts: Mapping[str, float] = field(default_factory=dict)
    """Probabilities of hair, ruler, ink, sticker, bubbles, vignette and frame, see `render_overlay`."""

    def __post_init__(self) -> None:
        _require(0 < self.min_zoom <= 1, "augmentation.min_zoom", "must lie in (0, 1]")
        _require(1 <= self.max_zoom <= 2, "augmentation.max_zoom", "must lie in [1, 2]")
        _require(1 <= self.max_aspect <= 4, "augmentation.max_aspect", "must lie in [1, 4]")
        _require(0 <= self.max_shear <= 45, "augmentation.max_shear", "must lie in [0, 45]")
        _require(self.border in ("black", "reflect"), "augmentation.border", "is black or reflect")
        for name in ("rotate_probability", "grey"):
            _require(0 <= getattr(self, name) <= 1, f"augmentation.{name}", "must lie in [0, 1]")
        for name in ("brightness", "contrast", "saturation", "cast"):
            _require(0 <= getattr(self, name) < 1, f"augmentation.{name}", "must lie in [0, 1)")
        for name in ("max_angle", "hue", "max_noise"):
            _require(0 <= getattr(self, name) < math.inf, f"augmentation.{name}", "must not be negative")
        _require(0 <= self.max_blur <= 10, "augmentation.max_blur", "must lie in [0, 10]")
        for name, probability in self.artefacts.items():
            _require(
                name in ARTEFACTS, f"augmentation.artefacts.{name}", f"is unknown: choose from {', '.join(ARTEFACTS)}"
            )
            _require(0 <= probability <= 1, f"augmentation.artefacts.{name}", "must lie in [0, 1]")


@dataclass(frozen=True)
class Stage:
    """A part of the training with its own learning rates."""

    name: str
    """Of the file that the stage leaves, without ``.pt``."""
    epochs: int
    decoder_lr: float
    encoder_lr: float = 0.0
    """0 freezes the encoder: no gradients, and its batch norms keep ImageNet's statistics."""
    warmup_epochs: float = 0.5
    """Linear, from 0; then a cosine to 0."""
    schedule: str = "cosine"
    """``cosine`` or ``constant``."""
    input_size: int | None = None
    """Pixels; None for the recipe's. An early stage at a smaller size is cheaper (progressive resizing, Tan and Le
    2021, arXiv:2104.00298); validation is always at the recipe's."""
    augmentation: Augmentation | None = None
    """None for the recipe's. A last stage may be milder, so that the network ends on images as they are."""

    def __post_init__(self) -> None:
        _require_file_name(self.name, f"stage {self.name!r}: name")
        taken = self.name.casefold() in ("best", "last")
        _require(not taken, f"stage {self.name!r}: name", "is another file's: best.pt and last.pt are of every run")
        _require(self.epochs >= 0, f"stage {self.name!r}: epochs", "must not be negative")
        _require(0 < self.decoder_lr < math.inf, f"stage {self.name!r}: decoder_lr", "must be positive")
        _require(0 <= self.encoder_lr < math.inf, f"stage {self.name!r}: encoder_lr", "must not be negative")
        _require(0 <= self.warmup_epochs < math.inf, f"stage {self.name!r}: warmup_epochs", "must not be negative")
        _require(self.schedule in ("cosine", "constant"), f"stage {self.name!r}: schedule", "is cosine or constant")
        size = STRIDE if self.input_size is None else self.input_size
        _require(size > 0 and size % STRIDE == 0, f"stage {self.name!r}: input_size", f"is a multiple of {STRIDE}")

    @property
    def frozen(self) -> bool:
        """Whether the encoder keeps its weights."""
        return self.encoder_lr == 0


@dataclass(frozen=True)
class SoftLabels:
    """Targets that are in part the predictions of teachers, see `isicrt.trainer.soft_labels`."""

    teacher: str
    """Name of the teachers' recipe, or its YAML file (from the current folder, as for ``--recipe``)."""
    parts: int = 4
    """Of the training pairs; each teacher learns from all parts but one, which it predicts."""
    share: float = 0.5
    """Of the truth in the target; the rest is the prediction."""

    def __post_init__(self) -> None:
        _require(bool(self.teacher), "soft_labels.teacher", "is the name or the file of a recipe")
        _require(2 <= self.parts <= 100, "soft_labels.parts", "lies from 2 to 100")
        _require(0 <= self.share < 1, "soft_labels.share", "must lie in [0, 1)")


@dataclass(frozen=True)
class Recipe:
    """All settings of a training run."""

    name: str
    architecture: str
    stages: tuple[Stage, ...]
    layout: str = "light"
    decoder_channels: tuple[int, ...] | None = None
    """None: the layout's own; see `build_model`."""
    input_size: int = 192
    """Pixels; the side of the square that the network sees. 0, of a recipe `FROM_START`: that model's, as of a
    YAML file that has none."""
    batch_size: int = 16
    loss: Mapping[str, float] = field(default_factory=lambda: {"bce": 1.0})
    """Weights of bce, iou and dice."""
    augmentation: Augmentation | None = Augmentation()
    """None: images are decoded and resized, no more."""
    augmented_copies: int = 0
    """The report's offline scheme: so many augmented copies of each image are made once and added to the originals,
    and nothing is augmented online."""
    frozen_layers: int = 0
    """So many of the encoder's first layers (of 18 or 19) keep ImageNet's weights and statistics in every stage: they
    see edges and colours, and their large maps are what a training step spends most of its time on."""
    mixstyle: float = 0.0
    """Probability that the styles of a batch are mixed, see `mixed_styles`; 0 for never."""
    standardise: float = 0.0
    """Share in [0, 1] of each image's own mean and deviation that is taken out of it before the network sees it, in
    training and in every file that is made of the model; see `isicrt.trainer.models.standardised`."""
    soft_labels: SoftLabels | None = None
    """None: the targets are the masks, and nothing else."""
    weight_decay: float = 0.01
    """Of AdamW; biases and batch norms are left out."""
    ema_decay: float = 0.0
    """Of the moving average of the weights that is validated and saved; 0 for none."""
    folds: int = 5
    """Cross-validation folds; ``--fold`` says which one validates."""
    start_share: float = 0.0
    """Of what ``--start-from`` gave, in the weights that are validated and saved, see `isicrt.trainer.start.Blend`."""

    def __post_init__(self) -> None:
        _require_file_name(self.name, "name")
        known = (*ARCHITECTURES, FROM_START)
        _require(self.architecture in known, "architecture", f"is one of {', '.join(known)}")
        _require(self.layout in LAYOUTS, "layout", f"is one of {', '.join(LAYOUTS)}")
        fit = self.input_size > 0 or (self.input_size == 0 and self.architecture == FROM_START)
        _require(fit and self.input_size % STRIDE == 0, "input_size", f"is a multiple of {STRIDE}")
        _require(1 <= self.batch_size <= 4096, "batch_size", "lies from 1 to 4096")
        _require(0 <= self.frozen_layers <= 18, "frozen_layers", "lies from 0 to 18")
        _require(0 <= self.mixstyle <= 1, "mixstyle", "must lie in [0, 1]")
        _require(0 <= self.standardise <= 1, "standardise", "must lie in [0, 1]")
        _require(0 <= self.weight_decay < 1, "weight_decay", "lies in [0, 1)")
        _require(0 <= self.ema_decay < 1, "ema_decay", "lies in [0, 1)")
        _require(self.folds >= 2, "folds", "is at least 2")
        _require(0 <= self.start_share < 1, "start_share", "lies in [0, 1)")
        _require(self.augmented_copies >= 0, "augmented_copies", "must not be negative")
        _require(sum(s.epochs for s in self.stages) > 0, "stages", "need at least one epoch")
        if self.architecture == FROM_START:
            own = (self.layout, self.decoder_channels, self.standardise) == ("light", None, 0)
            _require(own, "architecture: start", "has layout, decoder_channels and standardise of that model")
        names = {stage.name.casefold() for stage in self.stages}
        _require(len(names) == len(self.stages), "stages", "need a name each: a stage leaves a file of its name")
        offline = self.augmented_copies > 0
        _require(not offline or self.augmentation is not None, "augmentation", "is needed for augmented_copies")
        _require(self.soft_labels is None or not offline, "soft_labels", "does not go with augmented_copies")
        for stage in self.stages:
            _require(
                stage.augmentation is None or (self.augmentation is not None and not offline),
                f"stage {stage.name!r}: augmentation",
                "is for recipes that augment online",
            )
        mix(self.loss)

    @property
    def epochs(self) -> int:
        """Of all stages."""
        return sum(stage.epochs for stage in self.stages)

    @property
    def largest_size(self) -> int:
        """Pixels; the largest input of all stages that are trained."""
        return max(stage.input_size or self.input_size for stage in self.stages if stage.epochs)

    def stage_of(self, epoch: int) -> tuple[Stage, int]:
        """The stage of an epoch (from 0), and the first epoch of that stage."""
        start = 0
        for stage in self.stages:
            if epoch < start + stage.epochs:
                return stage, start
            start += stage.epochs
        raise ValueError(f"epoch {epoch} of {self.epochs}")

    def with_epochs(self, epochs: int) -> Recipe:
        """The same recipe stretched or shortened to so many epochs, shared out among the stages in proportion."""
        _require(epochs >= 1, "--epochs", "must be at least 1")
        shares = [stage.epochs * epochs / self.epochs for stage in self.stages]
        counts = [int(share) for share in shares]
        # Largest remainder; of equal ones the later stage, which is the one that makes the model.
        by_remainder = sorted(range(len(shares)), key=lambda i: (shares[i] - counts[i], i), reverse=True)
        for i in by_remainder[: epochs - sum(counts)]:
            counts[i] += 1
        stages = tuple(dataclasses.replace(s, epochs=n) for s, n in zip(self.stages, counts, strict=True))
        return dataclasses.replace(self, stages=stages)

    def to_dict(self) -> dict[str, Any]:
        """Plain YAML types."""
        data = dataclasses.asdict(self)
        data["stages"] = list(data["stages"])
        if self.decoder_channels is not None:
            data["decoder_channels"] = list(self.decoder_channels)
        data["loss"] = dict(self.loss)
        # A run that began before there was such a setting can be resumed.
        for name in ("mixstyle", "soft_labels", "standardise", "start_share"):
            if not data[name]:
                del data[name]
        for amounts in (data["augmentation"], *(stage["augmentation"] for stage in data["stages"])):
            if amounts is not None and not amounts["grey"]:
                del amounts["grey"]
        return data

    @classmethod
    def from_dict(cls, data: Any) -> Recipe:
        """The inverse of `to_dict`.

        Raises:
            SettingsError: an unknown, missing or impossible setting; the message names it.
        """
        top = _mapping(data, "a recipe")
        if top.get("architecture") == FROM_START:
            top.setdefault("input_size", 0)
        _augment(top, "")
        if not isinstance(top.get("stages"), list):
            raise SettingsError("setting 'stages' must be a list with a mapping for each stage")
        stages = [_mapping(stage, "stages") for stage in top["stages"]]
        for i, stage in enumerate(stages):
            _augment(stage, f"stages[{i}].")
        top["stages"] = tuple(_build(Stage, stage, f"stages[{i}].") for i, stage in enumerate(stages))
        if top.get("decoder_channels") is not None:
            if not isinstance(top["decoder_channels"], list):
                raise SettingsError("setting 'decoder_channels' must be a list of widths")
            top["decoder_channels"] = tuple(top["decoder_channels"])
        if "loss" in top:
            top["loss"] = {name: _number(weight) for name, weight in _mapping(top["loss"], "loss").items()}
        if top.get("soft_labels") is not None:
            top["soft_labels"] = _build(SoftLabels, _mapping(top["soft_labels"], "soft_labels"), "soft_labels.")
        return _build(cls, top, "")


class _Loader(yaml.SafeLoader):
    """Takes no key twice, of which YAML's own reader keeps the last and says nothing."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                raise SettingsError(f"setting '{key.value}' is given twice, again in line {key.start_mark.line + 1}")
            seen.add(key.value)
        return node


def recipe_names() -> list[str]:
    """Of the recipes that ship, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load_recipe(recipe: str | os.PathLike[str]) -> Recipe:
    """Read a recipe by name or from a YAML file.

    Raises:
        SettingsError: no such recipe, not YAML, or settings that cannot be used; the message names the file.
    """
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml"):
        path = _FOLDER / f"{recipe}.yaml"
    if not path.is_file():
        raise SettingsError(f"{recipe}: no such recipe. Name a YAML file or one of: {', '.join(recipe_names())}")
    try:
        return Recipe.from_dict(yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader))
    except (yaml.YAMLError, ValueError) as error:  # also bytes that are no UTF-8, and numbers of 5000 digits
        raise SettingsError(f"{path}: not YAML: {error}") from None
    except RecursionError:
        raise SettingsError(f"{path}: nested too deeply to be a recipe") from None
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None


def _mapping(data: Any, what: str) -> dict[str, Any]:
    if not isinstance(data, Mapping) or not all(isinstance(key, str) for key in data):
        raise SettingsError(f"{what} must be a mapping of settings, not {type(data).__name__}")
    return dict(data)


def _augment(settings: dict[str, Any], prefix: str) -> None:
    """Make an `Augmentation` of the mapping of that name, if there is one."""
    if settings.get("augmentation") is None:
        return
    name = f"{prefix}augmentation"
    amounts = _mapping(settings["augmentation"], name)
    if "artefacts" in amounts:
        amounts["artefacts"] = _numbers(_mapping(amounts["artefacts"], f"{name}.artefacts"), f"{name}.artefacts")
    settings["augmentation"] = _build(Augmentation, amounts, f"{name}.")


def _numbers(data: Mapping[str, Any], what: str) -> dict[str, float]:
    numbers = {name: _number(value) for name, value in data.items()}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise SettingsError(f"setting '{what}.{name}' must be a number, not {value!r}")
    return numbers


def _number(value: Any) -> Any:
    """What YAML 1.1 takes for text because it has no dot: 1e-3. Other values as they are."""
    with suppress(ValueError):
        if isinstance(value, str) and math.isfinite(float(value)):
            return float(value)
    return value


def _build(kind: type[T], data: Mapping[str, Any], prefix: str) -> T:
    """An instance of a settings dataclass; numbers may be written without a dot, everything else must fit."""
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(fields)):
        raise SettingsError(f"unknown setting '{prefix}{unknown[0]}'; known here: {', '.join(fields)}")
    values: dict[str, Any] = {}
    for name, f in fields.items():
        if name not in data:
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise SettingsError(f"setting '{prefix}{name}' is missing")
            continue
        value = _number(data[name]) if f.type == "float" else data[name]
        kinds: dict[str, type | tuple[type, ...]] = {
            "int": int,
            "int | None": (int, type(None)),
            "float": (int, float),
            "str": str,
            "bool": bool,
        }
        expected = kinds.get(str(f.type))
        if expected is not None:
            boolean = isinstance(value, bool) and f.type != "bool"
            if boolean or not isinstance(value, expected):
                raise SettingsError(f"setting '{prefix}{name}' must be of type {f.type}, not {value!r}")
            if f.type == "float":
                value = float(_number(data[name]))  # 1 is a number too
        values[name] = value
    return kind(**values)
