from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Callable
from xml.etree import ElementTree

import pytest

from isicrt.benchmarks.latency import Latency
from isicrt.benchmarks.plots import (
    MAX_LANES,
    _LinearAxis,
    _LogAxis,
    _ticks,
    latency_plot,
    stage_plot,
    timeline_plot,
    tradeoff_plot,
)
from isicrt.benchmarks.result import Report
from isicrt.benchmarks.timeline import Lane
from tests.benchmarks.sample_report import sample_model, sample_report

Plot = Callable[[Report, int], str]
PLOTS: list[Plot] = [latency_plot, stage_plot, timeline_plot, tradeoff_plot]
REPORTS = [
    sample_report(),
    sample_report(*(sample_model(f"a model with quite a long name {n}", slower=1 + n / 9) for n in range(5))),
    sample_report(sample_model("<b> & \"quoted\" 'name'")),
    sample_report(*(sample_model(f"{'long_card_name_' * 4} (fold_{n}_{'of_a_file_' * 6}.onnx)") for n in range(2))),
]


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0, 10, 5, [0, 2, 4, 6, 8, 10]),
        (0, 0.3, 3, [0, 0.1, 0.2, 0.3]),
        (0.83, 0.91, 4, [0.84, 0.86, 0.88, 0.9]),
        (0, 1234, 4, [0, 500, 1000]),
    ],
)
def test_ticks(low: float, high: float, count: int, expected: list[float]) -> None:
    assert _ticks(low, high, count) == expected


@pytest.mark.parametrize(
    "axis", [_LinearAxis(0, 0.00123, 340), _LinearAxis(0, 987, 880), _LogAxis(1, 10, 340), _LogAxis(0.7, 812, 880)]
)
def test_axes_hold_their_range_in_order(axis: _LinearAxis) -> None:
    places = [axis.at(t) for t in axis.ticks]
    assert places == sorted(places)
    assert places[0] == axis.left
    assert places[-1] == pytest.approx(axis.right)
    assert len(axis.ticks) >= 2


@pytest.mark.parametrize(("low", "high"), [(1, 10), (0.7, 812), (3, 3.1), (1000, 1000)])
def test_a_log_axis_covers_its_data(low: float, high: float) -> None:
    axis = _LogAxis(low, high * 1.0001, 880)
    assert axis.left <= axis.at(low) <= axis.at(high) <= axis.right


@pytest.mark.parametrize("width", [340, 880])
@pytest.mark.parametrize("report", REPORTS)
@pytest.mark.parametrize("plot", PLOTS)
def test_everything_lies_inside_the_drawing(plot: Plot, report: Report, width: int) -> None:
    root = ElementTree.fromstring(plot(report, width))
    height = float(root.attrib["height"])
    assert root.attrib["width"] == str(width)
    for node in root.iter():
        if "x" in node.attrib:
            x = float(node.attrib["x"])
            room = 7.7 * len(node.text or "") if node.tag == "text" else float(node.attrib["width"])
            start = {"end": x - room, "middle": x - room / 2}.get(node.attrib.get("text-anchor", ""), x)
            assert start >= -1, node.text
            assert start + room <= width + 1, node.text
            assert 0 <= float(node.attrib["y"]) <= height
        for x, y in re.findall(r"M([\d.]+) ([\d.]+)", node.attrib.get("d", "")):
            assert 0 <= float(x) <= width
            assert 0 <= float(y) <= height


def test_every_call_is_a_dot() -> None:
    latency = Latency(1, ((1.0, 2.0, 400.0), (1.5,)))
    drawing = latency_plot(sample_report(dataclasses.replace(sample_model(), latencies=(latency,))), 880)
    assert drawing.count("h0") == 4 + 1, "four calls and the one in the legend"
    assert "log scale" in drawing


def test_the_stage_plot_starts_each_bar_where_the_last_ended() -> None:
    root = ElementTree.fromstring(stage_plot(sample_report(), 880))
    bars = [n for n in root if n.tag == "rect" and n.attrib["height"] == "24"]
    assert [b.attrib["class"] for b in bars] == ["bar decode", "bar infer", "bar restore", "bar write"]
    for left, right in itertools.pairwise(bars):
        assert float(left.attrib["x"]) + float(left.attrib["width"]) == pytest.approx(float(right.attrib["x"]), abs=0.2)
    widths = [float(b.attrib["width"]) for b in bars]
    assert widths[1] / widths[0] == pytest.approx(8, rel=0.02)
    end = float(bars[-1].attrib["x"]) + widths[-1]
    assert _mark(root, "limit") == pytest.approx(end, abs=0.2), "on the CPU L is all stages together"


def test_the_stage_plot_marks_what_a_gpu_leaves_of_the_limit() -> None:
    model = sample_model()
    on_gpu = dataclasses.replace(model, stages=dataclasses.replace(model.stages, on_device=True))
    root = ElementTree.fromstring(stage_plot(sample_report(on_gpu), 880))
    start, end = (_mark(root, kind) for kind in ("limit", "measured"))
    bars = [n for n in root if n.tag == "rect" and n.attrib["height"] == "24"]
    assert float(bars[1].attrib["width"]) == pytest.approx(start - 3, abs=0.2), "the network's wall time, from 0"
    assert start < end


def _mark(root: ElementTree.Element, kind: str) -> float:
    """Where the line of the only model is; the legend's is before it."""
    marks = [n for n in root if n.tag == "path" and n.attrib["class"] == kind]
    return float(marks[-1].attrib["d"].split()[0].lstrip("M"))


@pytest.mark.parametrize("width", [340, 880])
def test_the_timeline_shows_each_span_on_its_thread(width: int) -> None:
    root = ElementTree.fromstring(timeline_plot(sample_report(), width))
    bars = [n for n in root if n.tag == "path" and n.attrib["class"].startswith("bar")]
    assert [b.attrib["class"] for b in bars] == ["bar decode", "bar infer", "bar restore", "bar write"]
    spans = [re.findall(r"M([\d.]+) (\d+)h([\d.]+)v", b.attrib["d"]) for b in bars]
    assert [len(s) for s in spans] == [2, 1, 2, 1]
    # decode-0, infer and write-0 have a line each; restore and write are of one thread.
    tops = [int(lane[0][1]) for lane in spans]
    assert tops[0] < tops[1] < tops[2] == tops[3]
    wide = [float(w) for lane in spans for _, _, w in lane]
    assert wide[0] / wide[1] == pytest.approx(10 / 8, rel=0.05)
    assert wide[4] == 0.5, "0.01 ms can be seen"
    names = [n.text for n in root if n.tag == "text"]
    assert {"decode-0", "infer", "write-0", "darkness, batch 8"} <= set(names)


def test_a_timeline_of_many_threads_shows_some_and_counts_the_rest() -> None:
    lanes = tuple(Lane(f"decode-{n}", "decode", (0.0,), (5.0,)) for n in range(MAX_LANES + 4))
    drawing = timeline_plot(sample_report(dataclasses.replace(sample_model(), timeline=lanes)), 880)
    assert "and 4 threads more" in drawing
    assert drawing.count('class="bar decode"') == MAX_LANES + 1, "and the one in the legend"


@pytest.mark.parametrize("width", [340, 880])
def test_labels_of_points_do_not_lie_on_each_other(width: int) -> None:
    models = [sample_model(f"model {n}", slower=slower) for n, slower in enumerate([1, 1, 1, 1.01, 3, 3])]
    root = ElementTree.fromstring(tradeoff_plot(sample_report(*models), width))
    labels = [(float(n.attrib["x"]), float(n.attrib["y"])) for n in root if n.attrib.get("class") == "name"]
    assert len(labels) == 6
    for (x0, y0), (x1, y1) in itertools.combinations(labels, 2):
        assert abs(x1 - x0) >= 7.7 * len("model 0") or abs(y1 - y0) >= 13


CARD, FILE = "attention_unet_" * 4, "trained_on_isic2016_" * 4


@pytest.mark.parametrize("width", [340, 880])
@pytest.mark.parametrize("plot", [latency_plot, stage_plot, timeline_plot])
@pytest.mark.parametrize(
    ("labels", "shown"),
    [
        # They differ at the end, at the start of the file's name, and amid it.
        ([f"{CARD}({FILE}a.onnx)", f"{CARD}({FILE}b.onnx)"], ["a.onnx)", "b.onnx)"]),
        ([f"{CARD}(first_{FILE})", f"{CARD}(second_{FILE})"], ["first", "second"]),
        ([f"{CARD}({FILE}12_{FILE})", f"{CARD}({FILE}13_{FILE})"], ["12_", "13_"]),
        ([f"{FILE}12_{CARD}{FILE}", f"{FILE}13_{CARD}{FILE}", "short"], ["12_", "13_", "short"]),
        ([f"a{FILE}{CARD}{FILE}", f"b{FILE}{CARD}{FILE}"], ["a", "b"]),
        # The last two differ far behind the letter in which all three do.
        ([f"{CARD}{n}_{FILE}{k}_{FILE}" for n, k in ((1, 1), (2, 1), (2, 2))], ["1_", "2: ", "3: "]),
    ],
)
def test_long_names_are_cut_so_that_each_can_be_told(
    plot: Plot, width: int, labels: list[str], shown: list[str]
) -> None:
    report = sample_report(*map(sample_model, labels))
    names = [n.text or "" for n in ElementTree.fromstring(plot(report, width)) if n.attrib.get("class") == "name"]
    assert len(names) == len(labels) * (2 if plot is latency_plot else 1)
    assert len(set(names)) == len(labels) * (2 if plot is latency_plot and width == 880 else 1)
    for sign in shown:
        assert [n for n in names if sign in n], (sign, names)
    suffix = ", onnxruntime-cpu" if plot is stage_plot else ", batch 8" if plot is timeline_plot else ""
    assert all(n.endswith(suffix) for n in names)


@pytest.mark.parametrize("width", [340, 880])
def test_points_with_long_names_are_numbered_and_the_names_stand_below(width: int) -> None:
    labels = [f"{CARD}({FILE}a.onnx)", "unet", f"{CARD}({FILE}b.onnx)"]
    root = ElementTree.fromstring(tradeoff_plot(sample_report(*map(sample_model, labels)), width))
    assert [n.text for n in root if n.attrib.get("class") == "name"] == ["1", "2", "3"]
    key = [n for n in root if n.attrib.get("class") == "key"]
    # Whole, in as many lines as they need.
    assert "".join(n.text or "" for n in key).replace(" ", "") == "".join(
        f"{n}:{label}" for n, label in enumerate(labels, 1)
    )
    heights = [float(n.attrib["y"]) for n in key]
    assert heights == sorted(set(heights))
    assert heights[0] > max(float(n.attrib["y"]) for n in root if n.attrib.get("class") == "muted") + 13


@pytest.mark.parametrize("labels", [["unet"], ["unet", "unet (b.onnx)"], [CARD[:30]]])
def test_points_with_short_names_and_a_lone_one_bear_them(labels: list[str]) -> None:
    root = ElementTree.fromstring(tradeoff_plot(sample_report(*map(sample_model, labels)), 340))
    assert [n.text for n in root if n.attrib.get("class") == "name"] == labels


@pytest.mark.parametrize("axis", [_LinearAxis(0, 987, 200), _LogAxis(0.01, 5000, 340), _LogAxis(1, 20, 200)])
def test_labels_of_ticks_do_not_lie_on_each_other(axis: _LinearAxis) -> None:
    ticks = [ElementTree.fromstring(part) for part in axis.draw(0, 10, "title") if "middle" in part]
    assert len(ticks) >= 2
    spans = [
        (float(t.attrib["x"]) - 3.8 * len(t.text or ""), float(t.attrib["x"]) + 3.8 * len(t.text or "")) for t in ticks
    ]
    for (_, end), (start, _) in itertools.pairwise(spans):
        assert end <= start
