from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path, PurePath

import numpy as np
import pytest
from PIL import Image

from isicrt.benchmarks.accuracy import find_truths, score_masks
from isicrt.benchmarks.evaluation import (
    Candidate,
    Case,
    CaseScores,
    Scored,
    compare,
    labels,
    labels_of_files,
    score_model,
)
from isicrt.benchmarks.report_protocol import ReportProtocol
from isicrt.benchmarks.scoring_protocol import OfficialProtocol
from isicrt.engine.errors import DataError, SettingsError
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.pipeline import run_jobs
from isicrt.engine.runtime import Runtime
from isicrt.engine.scores import Overlap
from isicrt.engine.sources import find_jobs
from tests.tiny_models import darkness_card


@pytest.fixture
def runtime(darkness_onnx: Path) -> Iterator[Runtime]:
    with OnnxRuntime(darkness_onnx, threads=1) as opened:
        yield opened


@pytest.fixture
def candidate(runtime: Runtime) -> Candidate:
    return Candidate("darkness", "models/darkness.onnx", "0" * 64, runtime)


@pytest.fixture
def cases(rendered_pairs: Path) -> list[Case]:
    images, masks = rendered_pairs / "images", rendered_pairs / "masks"
    return [Case(p.stem, p, masks / f"{p.stem}_Segmentation.png") for p in sorted(images.iterdir())]


def test_scores_are_those_of_the_masks_that_segment_writes(
    candidate: Candidate, cases: list[Case], rendered_pairs: Path, tmp_path: Path
) -> None:
    jobs = find_jobs(rendered_pairs / "images", tmp_path)
    run_jobs(jobs, candidate.runtime, batch_size=5)
    names = [PurePath(job.mask.relative_to(tmp_path)) for job in jobs]
    written = score_masks(tmp_path, find_truths(names, rendered_pairs / "masks"))

    scored = score_model(candidate, cases, OfficialProtocol(), batch_size=5)

    assert {f"{c.case.id}.png": c.scores for c in scored.cases} == written.per_image
    assert scored.summary == written.summary
    assert 0.3 < float(scored.summary["jaccard"]) < 1


@pytest.mark.parametrize("protocol", [OfficialProtocol(), ReportProtocol()])
@pytest.mark.parametrize(("batch_size", "threads"), [(1, 1), (5, 2), (64, None)])
def test_batches_and_threads_change_nothing(
    candidate: Candidate,
    cases: list[Case],
    protocol: OfficialProtocol | ReportProtocol,
    batch_size: int,
    threads: int | None,
) -> None:
    seen: list[None] = []
    scored = score_model(
        candidate, cases, protocol, batch_size=batch_size, threads=threads, on_image=lambda: seen.append(None)
    )
    assert scored.cases == score_model(candidate, cases, protocol).cases
    assert [c.case.id for c in scored.cases] == [c.id for c in cases]
    assert len(seen) == scored.images == len(cases) == 12


def test_shares_and_sizes(candidate: Candidate, cases: list[Case]) -> None:
    first = score_model(candidate, cases[:1], OfficialProtocol()).cases[0]
    truth = np.asarray(Image.open(cases[0].truth)) > 0
    assert first.native_size == truth.shape
    assert first.truth_share == truth.mean()
    assert 0 < first.lesion_share < 1


@pytest.mark.parametrize("protocol", [OfficialProtocol(), ReportProtocol()])
def test_a_bad_image_costs_itself(
    candidate: Candidate, cases: list[Case], tmp_path: Path, protocol: OfficialProtocol | ReportProtocol
) -> None:
    broken, wrong, text = tmp_path / "broken.jpg", tmp_path / "wrong.png", tmp_path / "text.png"
    broken.write_bytes(b"\xff\xd8\xffnot a JPEG")
    Image.new("L", (3, 4)).save(wrong)
    text.write_bytes(b"not a PNG")
    bad = [Case("a", broken, cases[0].truth), Case("b", cases[0].image, wrong), Case("c", cases[0].image, text)]
    seen: list[None] = []

    scored = score_model(candidate, [*bad, *cases[:2]], protocol, batch_size=2, on_image=lambda: seen.append(None))

    assert [c.case.id for c in scored.cases] == [cases[0].id, cases[1].id]
    assert scored.images == len(seen) == 5
    assert scored.summary["images"] == 2
    assert "broken.jpg" in scored.problems[0].reason
    assert f"wrong.png: is 3 x 4 pixels, its image {cases[0].image.name} 90 x 120" in scored.problems[1].reason
    assert "text.png" in scored.problems[2].reason
    assert [problem.id for problem in scored.problems] == ["a", "b", "c"]


def test_nothing_that_can_be_scored(candidate: Candidate, cases: list[Case], tmp_path: Path) -> None:
    shutil.copy(cases[0].truth, tmp_path / "a.png")
    (tmp_path / "a.jpg").touch()
    bad = [Case("a", tmp_path / "a.jpg", tmp_path / "a.png")]
    with pytest.raises(DataError, match=r"not one of 1 images could be scored\. The first: .*a\.jpg"):
        score_model(candidate, bad, OfficialProtocol())
    with pytest.raises(DataError, match="not one of 0 images"):
        score_model(candidate, [], OfficialProtocol())


@pytest.mark.parametrize(("limit", "size", "message"), [(4, 5, "takes 1 to 4"), (None, 0, "takes at least 1")])
def test_batches_that_the_model_does_not_take(
    candidate: Candidate, cases: list[Case], limit: int | None, size: int, message: str
) -> None:
    candidate.runtime.max_batch = limit
    with pytest.raises(SettingsError, match=message):
        score_model(candidate, cases, OfficialProtocol(), batch_size=size)


def _scored(label: str, jaccards: dict[str, float]) -> Scored:
    cases = tuple(
        CaseScores(Case(name, Path(name), Path(name)), (1, 1), Overlap(j, j), 0, 0) for name, j in jaccards.items()
    )
    return Scored(label, label, "", "", darkness_card(), "", 0.5, (), len(cases), cases, ())


def test_differences_are_taken_image_by_image() -> None:
    names = [str(n) for n in range(10)]
    first = _scored("a", {n: 0.05 * int(n) for n in names})
    better = _scored("b", {n: 0.05 * int(n) + 0.1 for n in reversed(names)})
    mixed = _scored("c", {n: 0.9 * (int(n) % 2) for n in names} | {"other": 1.0})
    few = _scored("e", {n: 1.0 for n in names[1:]})
    other = _scored("d", {"other": 1.0})
    steady, unclear, unknown = compare(first, [better, mixed, few, other])
    assert (steady.label, steady.against, steady.images) == ("b", "a", 10)
    # Every image gains 0.1, so every resample does, however much the images differ among themselves.
    assert (steady.jaccard, steady.low, steady.high) == pytest.approx((0.1, 0.1, 0.1))
    assert steady.is_clear
    assert unclear.images == 10
    assert unclear.low is not None
    assert unclear.high is not None
    assert unclear.low < 0 < unclear.jaccard < unclear.high
    assert not unclear.is_clear
    # Nine images that all gain show nothing.
    assert (unknown.images, unknown.low, unknown.high) == (9, None, None)
    assert not unknown.is_clear
    assert list(compare(first, [better])) == [steady]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([("a", "x.onnx"), ("b", "y.onnx")], ["a", "b"]),
        ([("a", "run-1/best.pt"), ("a", "run-2/best.pt")], ["a (run-1/best.pt)", "a (run-2/best.pt)"]),
        ([("a", "x"), ("a", "x"), ("b", "x")], ["a (x) #1", "a (x) #2", "b"]),
    ],
)
def test_labels_differ(names: list[tuple[str, str]], expected: list[str]) -> None:
    assert labels(names) == expected


def test_a_label_names_the_folder_only_where_the_file_does_not_tell() -> None:
    assert labels_of_files(["x", "x"], [Path("ci-81/a.onnx"), Path("ci-82/b.onnx")]) == ["x (a.onnx)", "x (b.onnx)"]
    assert labels_of_files(["x", "x"], [Path("a/m.onnx"), Path("b/m.onnx")]) == ["x (a/m.onnx)", "x (b/m.onnx)"]
