"""The command that builds a plan again is one that can be typed, and gives a plan that runs here."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from isicrt.engine.cuda_driver import Gpu
from isicrt.engine.rebuild import advice_without_builder, onnx_advice, onnx_beside, plan_source, rebuild_advice
from isicrt.engine.shipped import names, resolve
from tests.tiny_models import darkness_card, plan_card


@pytest.mark.parametrize(
    ("builder", "command"),
    [
        ({}, "isicrt build-engine best.pt --fp32 --batch-size 1,8,16 --target tensorrt-rtx --out /out"),
        (
            {"source": "unet-light", "flavour": "tensorrt", "options": ["--opt-level", "5", "--workspace", "64"]},
            "isicrt build-engine unet-light --fp32 --batch-size 1,8,16 --target tensorrt --opt-level 5 --workspace 64 "
            "--out /out",
        ),
        (
            {"source": "a b.onnx", "options": ["--compute-capability", "8.0,8.9"]},
            "isicrt build-engine 'a b.onnx' --fp32 --batch-size 1,8,16 --target tensorrt-rtx "
            "--compute-capability 8.0,8.9 --out /out",
        ),
    ],
)
def test_the_command_has_the_options_of_the_builder_and_the_folder(builder: dict[str, object], command: str) -> None:
    assert rebuild_advice(plan_card(**builder), Path("/out/model.plan")).endswith(f" with: {command}")


def test_it_is_built_of_the_onnx_file_beside_it_if_that_is_the_one(darkness_onnx: Path, tmp_path: Path) -> None:
    card = plan_card(onnx_sha256=hashlib.sha256(darkness_onnx.read_bytes()).hexdigest())
    plan, onnx = tmp_path / "model.plan", tmp_path / "model.onnx"
    assert onnx_beside(card, plan) is None
    assert onnx_advice(card, plan).startswith("Use the ONNX file that it was built of, ")
    shutil.copy(darkness_onnx, onnx)
    assert onnx_beside(card, plan) == onnx
    assert onnx_advice(card, plan).startswith(f"Use {onnx}, the ONNX file that it was built of")
    assert rebuild_advice(card, plan) == (
        f"Build it again with: isicrt build-engine {onnx} --fp32 --batch-size 1,8,16 --target tensorrt-rtx "
        f"--out {tmp_path}"
    )
    onnx.write_bytes(onnx.read_bytes() + b"\0")
    assert onnx_beside(card, plan) is None
    assert onnx_advice(card, plan).startswith(f"Use the ONNX file that it was built of ({onnx} is another one), ")
    assert "isicrt build-engine best.pt" in rebuild_advice(card, plan)
    assert onnx_beside(plan_card(), plan) is None


def test_a_plan_with_a_name_of_its_own_does_not_replace_others(darkness_onnx: Path, tmp_path: Path) -> None:
    card = plan_card(onnx_sha256=hashlib.sha256(darkness_onnx.read_bytes()).hexdigest())
    shutil.copy(darkness_onnx, tmp_path / "mine.onnx")
    advice = rebuild_advice(card, tmp_path / "mine.plan")
    assert advice.startswith(f"Build it again, as {tmp_path / 'mine' / 'model.plan'}, with: ")
    assert advice.endswith(f" --out {tmp_path / 'mine'}")
    assert str(tmp_path / "mine.onnx") in advice


def test_a_source_that_is_not_here_is_said_to_be_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    advice = rebuild_advice(plan_card(source="runs/a/best.pt"), Path("model.plan"))
    assert advice.startswith(
        "Build it again, from where runs/a/best.pt lies, with: isicrt build-engine runs/a/best.pt "
    )
    assert advice.endswith(f" --out {tmp_path}")
    Path("runs/a").mkdir(parents=True)
    Path("runs/a/best.pt").touch()
    advice = rebuild_advice(plan_card(source="runs/a/best.pt"), Path("model.plan"))
    assert advice.startswith("Build it again with: isicrt build-engine runs/a/best.pt ")
    assert advice.endswith(" --out .")
    assert "from where" in rebuild_advice(plan_card(source="x" * 900 + ".pt"), Path("model.plan"))


@pytest.mark.parametrize(
    ("capability", "options", "kept"),
    [
        ("7.5", "--hardware-compatibility ampere-plus --opt-level 5", "--opt-level 5 "),
        (
            "7.5",
            "--hardware-compatibility same-compute-capability",
            "--hardware-compatibility same-compute-capability ",
        ),
        ("8.6", "--hardware-compatibility ampere-plus", "--hardware-compatibility ampere-plus "),
        ("7.5", "--opt-level 5 --hardware-compatibility ampere-plus", "--opt-level 5 "),
    ],
)
def test_below_ampere_no_plan_is_for_ampere(capability: str, options: str, kept: str) -> None:
    card = plan_card(flavour="tensorrt", options=options.split())
    command = rebuild_advice(card, Path("/out/model.plan"), gpu=Gpu("any", capability, "13.0"))
    assert command.endswith(f"--target tensorrt {kept}--out /out")


def test_a_model_that_ships_is_built_by_its_name_and_none_of_int8(darkness_onnx: Path, tmp_path: Path) -> None:
    expected = {name: name.partition("-int8")[0] for name in names()}
    assert {name: plan_source(resolve(name)) for name in names()} == expected
    assert plan_source(darkness_onnx) == str(darkness_onnx)
    assert plan_source(tmp_path / "unet-light.onnx") == str(tmp_path / "unet-light.onnx")  # not there
    copy = shutil.copy(resolve("unet-light-int8"), tmp_path / "model.onnx")
    assert plan_source(copy) == "unet-light"
    assert plan_source(copy, darkness_card(name="mine-int8", precision="int8")) == "CHECKPOINT"
    assert advice_without_builder(tmp_path / "model.plan").startswith(
        "Build it again with: isicrt build-engine CHECKPOINT --fp16 (or"
    )
