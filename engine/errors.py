"""The errors that isicrt raises on purpose. `cli` turns them into exit codes; everything else is a bug."""

from __future__ import annotations


class IsicrtError(Exception):
    """Root of the hierarchy. The message says what is wrong, with which file, and what to do about it."""


class SettingsError(IsicrtError):
    """An option, a recipe or an argument that cannot be used."""


class DataError(IsicrtError):
    """A data set, a folder of images or a set of masks that cannot be used."""


class ImageError(DataError):
    """One image that cannot be decoded. It costs that image, not the run."""


class ModelError(IsicrtError):
    """A checkpoint, ONNX file, plan or model card that cannot be used."""


class NoGpuError(ModelError):
    """A model that runs on a GPU, where there is none or no driver for it."""


class OtherGpuError(ModelError):
    """A plan that was built for other GPUs than this machine's."""


class BuildError(IsicrtError):
    """An export or an engine build that failed, or whose result did not pass its proof."""


class TrainingError(IsicrtError):
    """A training run that cannot go on, such as a loss that is no longer a number."""


def install_line(extra: str) -> str:
    """What to type for an extra of isicrt. Not its bare name: isicrt is on no package index, and whoever took that name
    there would be installed."""
    return f"pip install '.[{extra}]' in isicrt's repository"


class MissingDependencyError(IsicrtError):
    """A package that this command needs is not installed.

    Args:
        package: what is missing, as the user knows it.
        extra: the extra of isicrt that installs it.
        cause: what the import said, if that helps.
    """

    def __init__(self, package: str, extra: str, cause: str = "") -> None:
        detail = f" ({cause})" if cause else ""
        super().__init__(
            f"{package} is needed for this and cannot be imported{detail}. Install it with: {install_line(extra)}"
        )
        self.package = package
        self.extra = extra
