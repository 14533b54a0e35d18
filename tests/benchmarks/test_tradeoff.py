"""The accuracy-speed table: which images, what is counted and scored, and what is written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result

from isicrt.benchmarks import tradeoff
from isicrt.benchmarks.evaluation import Case
from isicrt.benchmarks.latency import QUICK_WINDOW, Window
from isicrt.benchmarks.plain_unet import plain_unet
from isicrt.benchmarks.tradeoff import find_cases, main, measure_tradeoff
from isicrt.benchmarks.tradeoff_report import SCHEMA, read_tradeoff, to_markdown, to_svg
from isicrt.benchmarks.tradeoff_report import main as print_report
from isicrt.engine.errors import DataError, ModelError
from isicrt.engine.geometry import UInt8Array
from isicrt.engine.runtime import Runtime
from tests.tiny_models import write_darkness_model

EVERYTHING = {"ISIC_0000000", "ISIC_0000005", "ISIC_0000011"}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good model, ``good.onnx`` with a plan beside it, a worse one, and a small peer."""
    folder = tmp_path_factory.mktemp("models")
    write_darkness_model(folder / "good.onnx", name="good", threshold=0.4)
    (folder / "good.plan").write_bytes(b"x" * 1_500_000)
    write_darkness_model(folder / "worse.onnx", (32, 32), name="worse", threshold=0.9)
    (folder / "peer.onnx").write_bytes(plain_unet(0.05, 64).SerializeToString())
    return folder


@pytest.fixture(scope="module")
def result_file(models: Path, rendered_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run."""
    path = tmp_path_factory.mktemp("out") / "t.json"
    done = call(models, rendered_pairs, path, "--svg", str(path.with_suffix(".svg")))
    assert done.exit_code == 0, done.output
    return path


def call(models: Path, data: Path, out: Path, *options: str) -> Result:
    files = [str(models / name) for name in ("good.onnx", "worse.onnx")]
    peer = ["--peer", str(models / "peer.onnx"), "--repeats", "5", "--quick"]
    return CliRunner().invoke(main, [*files, "--data", str(data), *peer, "--json", str(out), *options])


@pytest.mark.parametrize("ids", [None, sorted(EVERYTHING)])
def test_cases_are_found_with_and_without_splits(rendered_pairs: Path, tmp_path: Path, ids: list[str] | None) -> None:
    (tmp_path / "test").symlink_to(rendered_pairs, target_is_directory=True)
    for root in (rendered_pairs, tmp_path):
        found = find_cases([root], "test", ids)
        assert len(found) == (12 if ids is None else 3)
        assert all(c.image.stem == c.id and c.truth.stem == f"{c.id}_Segmentation" for c in found)


def test_cases_that_cannot_be_had(rendered_pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of 2 ids are in no data set, such as ISIC_9"):
        find_cases([rendered_pairs], "test", ["ISIC_0000000", "ISIC_9"])
    with pytest.raises(DataError, match="ISIC_0000000 is also"):
        find_cases([rendered_pairs, rendered_pairs], "test")
    with pytest.raises(DataError, match="images"):
        find_cases([tmp_path], "test")


def test_the_file_says_what_was_measured(result_file: Path, models: Path) -> None:
    result = read_tradeoff(result_file)
    good, worse, peer = result["models"]
    assert [m["label"] for m in result["models"]] == ["good", "worse", "plain-unet-0.05g"]
    assert [m["peer"] for m in result["models"]] == [False, False, True]
    assert (good["macs"], good["parameters"], good["plan_bytes"]) == (64 * 64 * 3, 3, 1_500_000)
    assert (worse["plan_bytes"], worse["input"]) == (None, [32, 32])
    assert peer["macs"] / 1e9 == pytest.approx(0.05, rel=0.1)
    assert peer["accuracy"] is None
    for model in result["models"]:
        settings = [(t["threads"], t["batch_size"]) for t in model["timings"]]
        assert settings[:2] == [(1, 1), (1, 8)]
        assert all(len(t["repeats_ms"]) == 5 for t in model["timings"])
    assert {t["times_as_fast_as_peer"] for t in peer["timings"]} == {1.0}
    assert all(t["times_as_fast_as_peer"] > 0 for t in good["timings"])
    assert (result["data"]["images"], result["images_in_turn"]) == (12, 12)
    assert any("--quick" in warning for warning in result["warnings"])
    assert str(models) not in json.dumps({k: v for k, v in result.items() if k != "command"})


def test_scores_are_official_and_compared_with_the_best(result_file: Path) -> None:
    good, worse, _ = read_tradeoff(result_file)["models"]
    assert good["accuracy"]["against_best"] == {"jaccard": 0, "low": 0, "high": 0}
    best, other = good["accuracy"]["summary"]["jaccard"], worse["accuracy"]["summary"]["jaccard"]
    behind = worse["accuracy"]["against_best"]
    assert behind["jaccard"] == pytest.approx(other - best)
    assert behind["low"] <= behind["jaccard"] <= behind["high"] < 0
    assert len(good["accuracy"]["jaccard"]) == 12
    assert sum(good["accuracy"]["jaccard"].values()) / 12 == pytest.approx(best, abs=1e-5)


def test_few_images_have_no_interval_to_the_best(result_file: Path, models: Path, rendered_pairs: Path) -> None:
    files = [models / "good.onnx", models / "worse.onnx"]
    cases = find_cases([rendered_pairs], "test", sorted(EVERYTHING))
    found = measure_tradeoff(files, cases, peer=None, repeats=1, window=QUICK_WINDOW)
    behind = [m["accuracy"]["against_best"] for m in found["models"]]
    assert [(b["low"], b["high"]) for b in behind] == [(None, None)] * 2
    lines = to_markdown({**read_tradeoff(result_file), **found}).splitlines()
    assert lines[2].endswith("| best |")
    assert lines[3].endswith(" (too few images) |")


def test_markdown(result_file: Path) -> None:
    done = CliRunner().invoke(print_report, [str(result_file)])
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert len(lines) == 2 + 3
    assert "1.5" in lines[2]
    assert lines[2].endswith("| best |")
    assert "peer, not trained" in lines[4]
    assert "- Warning: measured with --quick" in done.output
    assert "milliseconds an image over 12 images in turn, medians of 5 repeats" in done.output


@pytest.mark.parametrize("width", [400, 880])
def test_drawing(result_file: Path, width: int) -> None:
    root = ElementTree.fromstring(to_svg(read_tradeoff(result_file), width))
    kinds = [node.attrib.get("class") for node in root.iter()]
    assert (kinds.count("point"), kinds.count("interval"), kinds.count("measured")) == (2, 2, 2)
    places = [float(n.attrib["cx"]) for n in root.iter() if n.attrib.get("class") == "point"]
    assert all(0 <= x <= width for x in places)
    assert ElementTree.parse(result_file.with_suffix(".svg")).getroot().tag.endswith("svg")


def test_without_a_peer(models: Path, rendered_pairs: Path) -> None:
    cases = find_cases([rendered_pairs], "test", sorted(EVERYTHING))
    result = measure_tradeoff([models / "good.onnx"] * 2, cases, peer=None, repeats=1, window=QUICK_WINDOW)
    assert [m["label"] for m in result["models"]] == ["good (good.onnx) #1", "good (good.onnx) #2"]
    assert {t["times_as_fast_as_peer"] for m in result["models"] for t in m["timings"]} == {None}


def test_a_second_look_is_in_the_time_of_an_image(
    models: Path, rendered_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls take the images in turn, all of them equally often, and what a few of them cost counts."""
    called: list[int] = []

    def measure(runtime: Runtime, batches: Sequence[UInt8Array], window: Window) -> tuple[float, ...]:
        called.append(len({image.tobytes() for batch in batches for image in batch}))
        return (1.0,) * (len(batches) - 1) + (13.0,)

    monkeypatch.setattr(tradeoff, "measure_latency", measure)
    cases = find_cases([rendered_pairs], "test")
    result = measure_tradeoff([models / "good.onnx"], cases, peer=None, repeats=1, window=QUICK_WINDOW)
    assert set(called) == {12}
    assert [t["ms_per_image"] for t in result["models"][0]["timings"]][:2] == [2.0, 7.0 / 8]


def test_what_cannot_be_measured(models: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    cases = find_cases([rendered_pairs], "test", sorted(EVERYTHING))
    with pytest.raises(DataError, match="no image"):
        measure_tradeoff([models / "good.onnx"], [], peer=None)
    with pytest.raises(ModelError, match=r"good\.plan: give the \.onnx"):
        measure_tradeoff([models / "good.plan"], cases, peer=None)
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no image")
    for bad, message in (
        (Case("broken", broken, cases[0].truth), "broken.jpg: cannot be decoded"),
        (Case("mixed", cases[0].image, cases[1].truth), "1 masks cannot be scored: mixed"),
    ):
        with pytest.raises(DataError, match=message):
            measure_tradeoff([models / "good.onnx"], [*cases, bad], peer=None, repeats=1, window=QUICK_WINDOW)


def test_commands_fail_with_a_message(models: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    ids = tmp_path / "ids.txt"
    ids.write_text("ISIC_9\n")
    done = call(models, rendered_pairs, tmp_path / "t.json", "--ids", str(ids))
    assert (done.exit_code, "such as ISIC_9" in done.output) == (1, True), done.output
    for text, message in (("{", "not a result"), ("[]", "not a result"), ('{"schema": "x"}', f"reads '{SCHEMA}'")):
        (tmp_path / "r.json").write_text(text)
        done = CliRunner().invoke(print_report, [str(tmp_path / "r.json")])
        assert (done.exit_code, message in done.output) == (1, True), done.output


def test_the_caption_says_what_computed(result_file: Path) -> None:
    result = read_tradeoff(result_file)
    (runtime,) = {m["runtime"] for m in result["models"]}
    assert f"- Computed by {runtime.replace('_', chr(92) + '_')}." in to_markdown(result)
    result["models"][1]["runtime"] = "abacus"
    assert f"- Computed by abacus (worse) and {runtime} (good, " in to_markdown(result)
    del result["models"][0]["runtime"]
    assert "Computed by" not in to_markdown(result), "results that did not note it can still be printed"


def test_the_runtime_is_the_one_that_was_opened(
    models: Path, rendered_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISICRT_CPU_RUNTIME", "onnxruntime")
    cases = find_cases([rendered_pairs], "test", sorted(EVERYTHING))
    result = measure_tradeoff([models / "good.onnx"], cases, peer=None, repeats=1, window=QUICK_WINDOW)
    assert [m["runtime"] for m in result["models"]] == ["onnxruntime-cpu"]


def test_markdown_escapes_names(result_file: Path) -> None:
    result = read_tradeoff(result_file)
    result["models"][0]["label"] = "a|b"
    assert "a\\|b" in to_markdown(result)
