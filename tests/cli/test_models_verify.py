"""`isicrt models verify`: what is checked of a stranger's file, and what is refused."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper

from isicrt.cli.main import group
from isicrt.engine.plan import write_plan
from tests.tiny_models import darkness_card, plan_card, write_darkness_model


def _verify(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(group, ["models", "verify", *map(str, arguments)])
    assert "Traceback" not in result.output
    return result.exit_code, result.output


def test_an_onnx_file(darkness_onnx: Path) -> None:
    code, output = _verify(darkness_onnx)
    assert code == 0
    assert output.startswith(f"{darkness_onnx}: passed\n")
    assert "the card: darkness, test, 64 x 64, fp32" in output
    code, output = _verify(darkness_onnx, "--json")
    found = json.loads(output)
    assert (found["passed"], found["reason"]) == (True, None)


@pytest.mark.parametrize("name", ["m.plan", "M.PLAN"])
def test_a_plan(tmp_path: Path, name: str) -> None:
    write_plan(tmp_path / name, plan_card(), b"plan")
    assert _verify(tmp_path / name)[0] == 0
    data = bytearray((tmp_path / name).read_bytes())
    data[-1] ^= 1
    (tmp_path / name).write_bytes(data)
    code, output = _verify(tmp_path / name)
    assert code == 1
    assert "altered" in output
    write_plan(tmp_path / name, plan_card(profile="abc"), b"plan")
    code, output = _verify(tmp_path / name)
    assert code == 1
    assert "profile must be three batch sizes" in output


def test_a_recipe_that_ships(tmp_path: Path) -> None:
    recipe = Path(__file__).resolve().parents[2] / "trainer" / "recipes"
    code, output = _verify(sorted(recipe.glob("*.yaml"))[0])
    assert code == 0
    assert "no object was built" in output


class _Bomb:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("exploded"),)  # type: ignore[return-value]


def _pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(_Bomb()))


def _pickled_in_a_checkpoint(path: Path) -> None:
    import torch

    torch.save({"isicrt": 1, "card": darkness_card().to_json(), "weights": {}, "x": _Bomb()}, path)


def _other_weights(path: Path) -> None:
    import torch

    torch.save({"isicrt": 1, "card": darkness_card().to_json(), "weights": {"x": torch.zeros(1)}}, path)


def _wrong_size(path: Path) -> None:
    write_darkness_model(path, (64, 64))
    path.write_bytes(path.read_bytes().replace(b'"input_height": 64', b'"input_height": 32'))


def _too_large_when_it_runs(path: Path) -> None:
    write_darkness_model(path)
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.array([1 << 20, 1 << 20], np.int64), "shape"))
    huge = helper.make_node("ConstantOfShape", ["shape"], ["huge"])
    next(node for node in model.graph.node if node.op_type == "Sub").input[0] = "most"
    model.graph.node.extend([huge, helper.make_node("ReduceMax", ["huge"], ["most"], keepdims=0)])
    onnx.save(model, path)


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        pytest.param("absent.onnx", lambda path: None, "no such file", id="absent"),
        pytest.param("m.bin", lambda path: path.touch(), "expected one of .onnx", id="suffix"),
        pytest.param("m.onnx", lambda path: path.write_bytes(b"rubbish"), "not an ONNX file", id="onnx_rubbish"),
        pytest.param("m.onnx", _wrong_size, "as its card says", id="onnx_wrong_size"),
        pytest.param("m.onnx", _too_large_when_it_runs, "did not pass", id="onnx_too_large_when_it_runs"),
        pytest.param("m.plan", lambda path: path.write_bytes(b"rubbish"), "not a plan", id="plan_rubbish"),
        pytest.param("m.pt", lambda path: path.write_bytes(b"rubbish"), "checkpoint", id="checkpoint_rubbish"),
        pytest.param("m.pt", _pickled, "read safely", id="pickle"),
        pytest.param("m.pt", _pickled_in_a_checkpoint, "read safely", id="pickle_in_a_checkpoint"),
        pytest.param("m.pt", _other_weights, "test", id="architecture_of_a_stranger"),
        pytest.param(
            "r.yaml",
            lambda path: path.write_text("!!python/object/apply:os.system ['touch exploded']"),
            "r.yaml",
            id="yaml_object",
        ),
        pytest.param("r.yaml", lambda path: path.write_text("nonsense: 3"), "stages", id="recipe_field"),
        pytest.param("r.yaml", lambda path: path.write_text("[" * 5000), "r.yaml", id="recipe_depth"),
        pytest.param("r.yml", lambda path: path.write_bytes(bytes(2 << 20)), "larger than 1 MiB", id="recipe_size"),
    ],
)
def test_what_does_not_pass(
    tmp_path: Path, name: str, make: Callable[[Path], object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / name)
    code, output = _verify(tmp_path / name)
    assert code == 1
    assert message in output
    result = CliRunner().invoke(group, ["models", "verify", str(tmp_path / name), "--json"])
    found = json.loads(result.stdout)
    assert (result.exit_code, found["passed"], found["checked"]) == (1, False, [])
    assert message in found["reason"]
    assert message in result.stderr
    assert not Path("exploded").exists()


_WITHOUT_TORCH = """
import sys
for name in ("torch", "torchvision", "yaml"):
    sys.modules[name] = None
sys.argv = ["isicrt", "models", *sys.argv[1:]]
from isicrt.cli.main import main
main()
"""


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["verify", "best.pt"], 3, "best.pt: cannot be checked here: torch is not installed."),
        (["verify", "best.pt", "--json"], 3, "best.pt: cannot be checked here: torch is not installed."),
        (["verify", "recipe.yaml"], 3, "recipe.yaml: cannot be checked here: "),
        (["best.pt"], 1, "torch is needed for this"),
    ],
)
def test_without_torch_a_file_is_not_called_bad(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    for name in ("best.pt", "recipe.yaml"):
        (tmp_path / name).touch()
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_TORCH, *arguments], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "pip install '.[train]'" in done.stderr
    assert "did not pass" not in done.stderr
    assert "Traceback" not in done.stderr
    if "--json" in arguments:
        found = json.loads(done.stdout)
        assert found["passed"] is None
        assert message in found["reason"]


@pytest.mark.parametrize("name", ["unet-light", "unet-light-int8"])
def test_a_model_that_ships_is_verified_by_its_name(name: str) -> None:
    code, output = _verify(name)
    assert code == 0, output
    assert f"{name}.onnx: passed" in output


def test_usage() -> None:
    assert _verify()[0] == 2
    assert CliRunner().invoke(group, ["models", "unet-light", "another"]).exit_code == 2
