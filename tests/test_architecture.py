"""The house rules: who may import whom, how long a file may be, and what a module may be called."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
ROOMS = ("engine", "trainer", "export", "benchmarks", "cli")
MAX_LINES = 400
VAGUE = {"utils", "util", "helpers", "helper", "common", "manager", "base", "misc"}

# Each room may import itself and what stands here. The scores live in the engine, because validation during training,
# the parity gate of an export and the benchmark must agree on them.
ALLOWED = {
    "engine": (),
    "trainer": tuple(
        f"engine.{module}"
        for module in (
            *("cache_folder", "card", "errors", "geometry", "images"),
            *("jpeg_notes", "lock", "mask_levels", "onnx_file", "scores"),
        )
    ),
    "export": ("engine", "trainer.models", "trainer.checkpoint", "trainer.dataset", "trainer.twins"),
    "benchmarks": ("engine",),
    "cli": ("engine", "trainer", "export", "benchmarks"),
}

BASE = {"numpy", "cv2", "PIL", "simplejpeg", "isal", "onnxruntime", "click", "rich", "cykooz_resizer", "isicrt"}
HEAVY = {"torch", "torchvision", "nvidia", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "pycuda", "onnx"}

MODULES = sorted(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))
TESTS = sorted((REPOSITORY / "tests").rglob("*.py"))


def _name(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


def _imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    """Dotted names that a file imports, with what is taken out of a package; `top_only`: at import time."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    lazy: set[ast.AST] = set()
    if top_only:
        for node in ast.walk(tree):
            typing_only = isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
            if typing_only or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                lazy.update(child for statement in node.body for child in ast.walk(statement))
    for node in ast.walk(tree):
        if node in lazy:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{_name(path)}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _fits(name: str, allowed: str) -> bool:
    return name == allowed or name.startswith(f"{allowed}.")


def test_all_rooms_are_there() -> None:
    assert {path.relative_to(REPOSITORY).parts[0] for path in MODULES} == set(ROOMS)


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_arrows_go_one_way(path: Path) -> None:
    room = path.relative_to(REPOSITORY).parts[0]
    for name in _imports(path):
        assert not _fits(name, "tests"), f"{_name(path)} imports {name}"
        assert name.split(".")[0] not in ROOMS, f"{_name(path)}: write isicrt.{name}"
        if name.startswith("isicrt."):
            inner = name.removeprefix("isicrt.")
            public = ("_command", "_version", "__version__")
            assert any(_fits(inner, a) for a in (room, *ALLOWED[room], *public)), f"{_name(path)} imports {name}"


@pytest.mark.parametrize("path", [p for p in MODULES if p.relative_to(REPOSITORY).parts[0] == "engine"], ids=_name)
def test_the_engine_knows_no_torch(path: Path) -> None:
    roots = {name.split(".")[0] for name in _imports(path)}
    assert not roots & {"torch", "torchvision", "nvidia", "onnx"}


@pytest.mark.parametrize(
    "path", [p for p in MODULES if p.relative_to(REPOSITORY).parts[0] in ("engine", "benchmarks", "cli")], ids=_name
)
def test_extras_are_imported_where_they_are_used(path: Path) -> None:
    """At import time nothing but the base dependencies; the rest may be missing."""
    roots = {name.split(".")[0] for name in _imports(path, top_only=True)}
    assert roots <= BASE | set(sys.stdlib_module_names)


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_what_reports_to_its_maker_is_imported_in_one_place(path: Path) -> None:
    found = {name.split(".")[0] for name in _imports(path)} & {"onnxruntime", "openvino"}
    assert not found, f"{_name(path)}: import {found} through engine/silent_imports.py"


@pytest.mark.parametrize("path", [p for p in MODULES if p.relative_to(REPOSITORY).parts[0] != "cli"], ids=_name)
def test_a_modules_command_explains_its_errors(path: Path) -> None:
    """Those of `isicrt` are explained by its group."""
    for line in path.read_text(encoding="utf-8").splitlines():
        assert "click.command(" not in line or "cls=ModuleCommand" in line, f"{_name(path)}: {line}"


@pytest.mark.parametrize("path", MODULES + TESTS, ids=_name)
def test_files_are_short_and_named(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= MAX_LINES, f"{_name(path)}: {lines} lines are two ideas"
    assert not set(path.stem.split("_")) & VAGUE, f"{_name(path)}: say what it is"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("isicrt", HEAVY | BASE - {"isicrt"}),
        ("isicrt.engine", HEAVY | BASE - {"isicrt"}),
        ("isicrt.cli.main", HEAVY | BASE - {"isicrt", "click"}),
        ("isicrt.engine.segmenter", HEAVY | {"click", "rich"}),
        ("isicrt.cli.segment", HEAVY | BASE - {"isicrt", "click"}),
        ("isicrt.cli.train", HEAVY),
        ("isicrt.cli.build_engine", HEAVY),
        ("isicrt.cli.bench", HEAVY),
        ("isicrt.cli.data", HEAVY),
        ("isicrt.cli.models", HEAVY),
    ],
)
def test_importing_stays_light(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert set(done.stdout.split()) & absent == set()
