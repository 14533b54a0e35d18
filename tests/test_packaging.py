"""What a clone and an installation hold: the wheel is built from a copy of the tree and looked into."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from PIL import Image

from isicrt._version import __version__

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("engine", "trainer", "export", "benchmarks", "cli")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, because setuptools writes build/ and *.egg-info beside its sources."""
    copy = tmp_path_factory.mktemp("tree")
    for path in REPOSITORY.iterdir():
        if path.is_file():
            shutil.copy(path, copy)
    for name in ("isicrt", *ROOMS, "tests", "docs", "examples"):
        shutil.copytree(REPOSITORY / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Path:
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--quiet", "--wheel-dir", "wheels"]
    if _setuptools() >= 77:  # what pyproject.toml asks for: then no network is needed
        command.append("--no-build-isolation")
    built = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (tree / "wheels").iterdir()
    return path


@pytest.fixture(scope="module")
def unpacked(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source distribution, unpacked."""
    if _setuptools() < 77:
        pytest.skip("setuptools 77 or newer is not installed")
    code = "from setuptools import build_meta; build_meta.build_sdist('sdist')"
    built = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, timeout=300)
    assert built.returncode == 0, built.stdout + built.stderr
    (archive,) = (tree / "sdist").iterdir()
    shutil.unpack_archive(archive, there := tmp_path_factory.mktemp("sdist"))
    (folder,) = there.iterdir()
    return folder


def _setuptools() -> int:
    try:
        return int(metadata.version("setuptools").split(".")[0])
    except metadata.PackageNotFoundError:
        return 0


@pytest.fixture(scope="module")
def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as file:
        return set(file.namelist())


def test_the_wheel_holds_every_module_and_data_file_of_every_room(names: set[str]) -> None:
    expected = {"isicrt/__init__.py", "isicrt/_command.py", "isicrt/_version.py", "isicrt/py.typed"}
    for room in ROOMS:
        paths = [*(REPOSITORY / room).rglob("*.py"), *(REPOSITORY / room).glob("recipes/*.yaml")]
        paths += [*(REPOSITORY / room).glob("models/*.onnx"), *(REPOSITORY / room).glob("*.ptx")]
        expected |= {f"isicrt/{path.relative_to(REPOSITORY).as_posix()}" for path in paths}
    assert "isicrt/engine/models/unet-light.onnx" in expected
    assert {f"isicrt/{room}/__init__.py" for room in ROOMS} <= expected
    assert {name for name in names if name.startswith("isicrt/")} == expected


def test_the_wheel_puts_nothing_else_into_site_packages(names: set[str]) -> None:
    assert {name.split("/")[0] for name in names} == {"isicrt", f"isicrt-{__version__}.dist-info"}


def test_the_wheel_has_its_licence_and_its_command(wheel: Path, names: set[str]) -> None:
    info = f"isicrt-{__version__}.dist-info"
    assert f"{info}/licenses/LICENSE" in names
    with zipfile.ZipFile(wheel) as file:
        entry_points = configparser.ConfigParser()
        entry_points.read_string(file.read(f"{info}/entry_points.txt").decode())
    assert dict(entry_points["console_scripts"]) == {"isicrt": "isicrt.cli.main:main"}


def test_the_wheel_runs_without_the_clone(wheel: Path, tmp_path: Path) -> None:
    # A wheel of pure Python can be imported from where it lies.
    code = "import isicrt, isicrt.cli.main as m, sys; assert sys.path[0] in isicrt.__file__, isicrt.__file__; m.main()"
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(wheel)!r}); {code}", "--version"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (run.returncode, run.stdout.strip()) == (0, f"isicrt, version {__version__}"), run.stderr


def test_a_source_distribution_holds_what_readme_starts_with_and_links_to(unpacked: Path) -> None:
    linked = re.findall(r"\]\(([^)#:]+)", (unpacked / "README.md").read_text(encoding="utf-8"))
    assert "docs/design.md" in linked
    for path in ("examples/images/rendered-1.jpg", *linked):
        assert (unpacked / path).is_file(), path
    assert not (unpacked / "tests").exists(), "they want a clone"
    assert not list(unpacked.rglob("__pycache__"))


def test_a_source_distribution_holds_what_the_wheel_does(unpacked: Path, names: set[str]) -> None:
    there = {path.relative_to(unpacked).as_posix() for path in (unpacked / "isicrt").rglob("*") if path.is_file()}
    assert there == {name for name in names if name.startswith("isicrt/")}


def test_the_base_installation_asks_for_no_gpu_library_and_no_torch() -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    required = {re.split(r"[^\w-]", line)[0] for line in setup["options"]["install_requires"].splitlines() if line}
    assert "numpy" in required  # the list was read
    assert not {name for name in required if re.match(r"(torch|tensorrt|pycuda|nvidia|onnx$|onnxscript)", name)}
    for extra in ("train", "gpu", "rtx", "dev"):
        assert setup["options.extras_require"][extra].strip()


@pytest.mark.parametrize(
    ("system", "machine", "wheel"),
    [
        ("linux", "x86_64", True),
        ("linux", "aarch64", False),
        ("linux", "ppc64le", False),
        ("darwin", "arm64", True),
        ("darwin", "x86_64", True),
        ("win32", "AMD64", True),
        ("win32", "ARM64", False),
    ],
)
def test_the_resizer_is_asked_for_where_it_has_a_wheel(system: str, machine: str, wheel: bool) -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    (line,) = (line for line in setup["options"]["install_requires"].splitlines() if line.startswith("cykooz"))
    marker = Requirement(line).marker
    assert marker is not None
    assert marker.evaluate({"sys_platform": system, "platform_machine": machine}) is wheel


def test_the_example_images_decode() -> None:
    paths = sorted((REPOSITORY / "examples" / "images").iterdir())
    assert len(paths) >= 4
    for path in paths:
        with Image.open(path) as image:
            image.load()
            assert (image.format, image.mode) == ("JPEG", "RGB"), path
    assert sum(path.stat().st_size for path in paths) < 600_000
