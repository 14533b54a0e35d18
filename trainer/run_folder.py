"""What a run folder says of its run: the settings that it was made with, so that no other run goes on in it, and the
rows of its epochs."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from isicrt._version import __version__
from isicrt.engine.card import MAX_NAME, exported_from
from isicrt.engine.errors import ModelError, SettingsError
from isicrt.trainer import checkpoint
from isicrt.trainer.data_hash import Alias
from isicrt.trainer.dataset import Pair
from isicrt.trainer.recipe import Recipe, recipe_names
from isicrt.trainer.run import RunSettings
from isicrt.trainer.start import Start

TEACHERS = "teachers"
"""The folder of the runs of a run's teachers, see `isicrt.trainer.soft_labels`."""
COPIES = "augmented"
"""The folder of a run's offline copies, see `isicrt.trainer.offline`."""
SAMPLES = "samples.png"
"""What the network sees in the first epoch, see `isicrt.trainer.curves.draw_samples`."""
_LONGEST_NAME = MAX_NAME - 50  # room for that
_OPTIONS = (
    (r"recipe\.stages\.\d+\.epochs:", "--epochs"),
    (r"recipe\.architecture:", "--model"),
    (r"recipe\b", "--recipe"),
    ("data_sha256:", "--data"),
    ("fold:", "--fold"),
    ("seed:", "--seed"),
    (r"start_from\b", "--start-from"),
    ("encoder_weights:", "--encoder-weights"),
)
"""What is typed for a part of a run's identity."""
ENCODER = "encoder_weights"
"""What ``config.yaml`` calls what the encoder began with, see `isicrt.trainer.start.encoder_weights`."""
SURROUNDINGS = ("data", "device", "isicrt", "torch")
"""What ``config.yaml`` says of where a run runs, which may change when it goes on."""


def has_begun(out: Path) -> bool:
    """Whether a run has begun in the folder: there is a checkpoint, or teachers or copies that come before it."""
    return any((out / name).exists() for name in (checkpoint.LAST, TEACHERS, COPIES))


def check_free(out: Path) -> None:
    """Refuse a folder whose run a new one would write over.

    A run that was killed after its first epoch, between ``best.pt`` and ``last.pt``, has lost nothing and begins anew.

    Raises:
        SettingsError: a run has begun in the folder, or left its best model there.
    """
    if has_begun(out):
        raise SettingsError(f"{out} holds a run already: go on with --resume auto, or name another folder with --out")
    best = out / checkpoint.BEST
    if best.exists() and ((out / checkpoint.METRICS).exists() or _epoch_of(best) != 1):
        raise SettingsError(
            f"{out} holds the {checkpoint.BEST} of a run already, and no {checkpoint.LAST} to go on from: name another "
            "folder with --out"
        )


def _epoch_of(best: Path) -> int | None:
    """None where the file does not say."""
    try:
        epoch = checkpoint.load(best)[1].get("epoch")
    except ModelError:
        return None
    return epoch if isinstance(epoch, int) else None


def check_place(resume: Path, out: Path) -> None:
    """Refuse a checkpoint of another folder, whose best model and metrics would stay there, and which would go on over
    whatever run `out` holds.

    Raises:
        ModelError: there is no such file.
        SettingsError: it is not in `out`.
    """
    if resume.parent.resolve() == out.resolve():
        return
    if not resume.is_file():
        raise ModelError(f"{resume}: no such checkpoint")
    raise SettingsError(
        f"{resume}: a run goes on in its own folder, where its best model and its metrics are: give "
        f"--out {resume.parent}, or leave --out away"
    )


def run_name(recipe: Recipe, fold: int | None) -> str:
    """What a run folder is called unless somebody calls it otherwise."""
    return f"{recipe.name}-all" if fold is None else f"{recipe.name}-fold{fold}"


def model_name(settings: RunSettings) -> str:
    """What the card of a run calls its model: as the run folder is called, so that tables tell runs of one recipe from
    each other and from the models that ship. Made fit for a card where it is not.

    A teacher is called after the run that it teaches. A folder that is called as a model that ships, which has the name
    of its recipe or of an export of it, does not give its name: `run_name` does.
    """
    out = settings.out.resolve()
    teaches = settings.held_out is not None and out.parent.name == TEACHERS
    name = f"{out.parent.parent.name}-teacher{out.name}" if teaches else out.name
    if not name.strip() or exported_from(name) in recipe_names():
        name = run_name(settings.recipe, settings.fold)
    return "".join(letter if letter.isprintable() else "_" for letter in name).strip()[:_LONGEST_NAME]


def identity_of(
    settings: RunSettings, data_sha256: str, *, start: Start | None = None, teacher: Recipe | None = None
) -> dict[str, Any]:
    """What must be the same when a run goes on, in plain YAML types.

    Args:
        settings: of the run.
        data_sha256: see `DatasetReport`.
        start: what the run begins with, if it is another run's checkpoint.
        teacher: the recipe of the run's teachers. All of it is here, because a name says nothing of what is in a file.
    """
    identity: dict[str, Any] = {
        "recipe": settings.recipe.to_dict(),
        "data_sha256": data_sha256,
        "fold": settings.fold,
        "seed": settings.seed,
    }
    # Absent where they are not used: a run that began before there were such settings can be resumed.
    if start is not None:
        identity["start_from"] = start.origin
    if teacher is not None:
        identity["teacher"] = teacher.to_dict()
    if settings.held_out is not None:
        identity["held_out"] = list(settings.held_out)
    return identity


def check_identity(
    path: Path, state: Mapping[str, Any], identity: Mapping[str, Any], also_known_as: Sequence[Alias] = ()
) -> None:
    """Refuse to go on with other data or another recipe, and say what differs. What the data are `also_known_as`, see
    `DatasetReport`, is refused too, and explained."""
    if "identity" not in state:
        raise SettingsError(f"{path}: cannot be resumed; name the {checkpoint.LAST} of a run")
    _compare(path, state["identity"], identity, also_known_as)


def check_config(
    out: Path, identity: Mapping[str, Any], encoder: str | None, also_known_as: Sequence[Alias] = ()
) -> None:
    """`check_identity` of a run that has no checkpoint yet, by its ``config.yaml``; and of the encoder's weights, which
    are read again."""
    path = out / checkpoint.CONFIG
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        then = {name: value for name, value in config.items() if name not in SURROUNDINGS}
    except (OSError, yaml.YAMLError, UnicodeDecodeError, AttributeError) as error:
        raise SettingsError(f"{path}: does not say which run this is: {error}. Delete {out} to begin anew") from error
    now = _plain(identity)
    if ENCODER in then:  # a run that began before it was noted goes on
        now[ENCODER] = encoder
    _compare(path, then, now, also_known_as)


def _compare(path: Path, then: Any, now: Any, also_known_as: Sequence[Alias] = ()) -> None:
    differences = _differences(then, now, "")
    if differences:
        sha256 = then.get("data_sha256") if isinstance(then, Mapping) else None
        alias = next((alias for alias in also_known_as if alias.sha256 == sha256), None)
        lines = [f"{line} ({option})" if (option := _option(line)) else line for line in differences]
        lines += _about_epochs(path, then, now, differences)
        title = "was made with other settings; give the same ones or start anew"
        if alias is not None:
            lines.append(_about_data(path, alias, now))
            if alias.earlier and len(differences) == 1:
                title = "cannot go on with this isicrt"
        raise SettingsError("\n  ".join([f"{path}: {title}:", *lines]))


def _about_data(path: Path, alias: Alias, now: Mapping[str, Any]) -> str:
    """What to do where a run's data are the same and have another hash."""
    way = "Finish it with an isicrt before that" if alias.earlier else "Take that file away to go on"
    line = f"Its data were these, with {alias.because}. {way}, or begin another run"
    if path.name == checkpoint.CONFIG:  # there are no weights yet
        return f"{line} in another --out"
    line += f" with its weights: --start-from {path} and another --out, without --resume"
    if alias.same_folds or now.get("fold") is None:
        return line
    return f"{line}, and with --fold none, because its folds were others"


def _option(difference: str) -> str:
    """Of `isicrt train`, for one of `_differences`; empty where there is none."""
    return next((option for setting, option in _OPTIONS if re.match(setting, difference)), "")


def _about_epochs(path: Path, then: Any, now: Any, differences: Sequence[str]) -> list[str]:
    """What to do where a run was to become longer or shorter. The epochs of teachers are their recipe's."""
    if "held_out" in now or not any(_option(line) == "--epochs" for line in differences):
        return []
    try:
        count, wanted = (sum(stage["epochs"] for stage in of["recipe"]["stages"]) for of in (then, now))
        if count == wanted or then["recipe"]["name"] != now["recipe"]["name"]:
            return []
    except (KeyError, TypeError):  # somebody has edited the file
        return []
    line = f"A run cannot be lengthened or shortened: go on with --epochs {count}"
    if path.name != checkpoint.CONFIG:
        line += f", or begin another run with its weights: --start-from {path} and another --out, without --resume"
    return [line]


def _differences(then: Any, now: Any, prefix: str) -> list[str]:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        keys = sorted(set(then) | set(now))
        return [d for k in keys for d in _differences(then.get(k), now.get(k), f"{prefix}{k}.")]
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        pairs = enumerate(zip(then, now, strict=True))
        return [d for i, (a, b) in pairs for d in _differences(a, b, f"{prefix}{i}.")]
    return [] if then == now else [f"{prefix.rstrip('.')}: {then!r} then, {now!r} now"]


def write_config(settings: RunSettings, identity: Mapping[str, Any], encoder: str | None) -> None:
    """``config.yaml``: the identity of a run, the encoder's first weights where they are known, and its `SURROUNDINGS`.

    Raises:
        OSError: it cannot be written; one that stood there before is untouched.
    """
    surroundings = {
        "data": [str(root) for root in settings.data],
        "device": settings.device,
        "isicrt": __version__,
        "torch": str(torch.__version__),
    }
    first = {} if encoder is None else {ENCODER: encoder}
    content = _plain({**identity, **first, **surroundings})
    replace_text(settings.out / checkpoint.CONFIG, yaml.safe_dump(content, sort_keys=False))


def write_validation(validation: Sequence[Pair], out: Path) -> None:
    """``validation.txt``: the ids of the images that the run validates on, one a line, as `isicrt evaluate --ids` takes
    them; no such file where there are none.

    Raises:
        OSError: it cannot be written.
    """
    if validation:
        replace_text(out / checkpoint.VALIDATION, "".join(f"{pair.id}\n" for pair in validation))
    else:  # of a run that was stopped before its first save
        (out / checkpoint.VALIDATION).unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """The value in YAML's own types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    return value


def write_metrics(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """``metrics.csv``, one row an epoch; whole or not at all."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(history[0]))
    writer.writeheader()
    writer.writerows(history)
    replace_text(path, text.getvalue())


def replace_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all. Raises OSError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")  # ids are names of files
    temporary.replace(path)
