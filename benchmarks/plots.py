"""The plots of the report as inline SVG, drawn here: no plotting library, no script, nothing to load.

Each takes a width in pixels, because an SVG that is scaled to fit a phone shrinks its letters too; the page holds a
wide and a narrow drawing and shows one. Colours are classes, which the page's style sheet gives for light and dark.
"""

from __future__ import annotations

import itertools
import math
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from isicrt.benchmarks.result import Report
from isicrt.benchmarks.tables import figure
from isicrt.benchmarks.timeline import Lane
from isicrt.engine.pipeline import STAGES

_LETTER = 7.8
"""Pixels that a letter takes in a wide bold font at 13 px: SVG cannot measure text, so room is estimated."""

_CUT = "\N{HORIZONTAL ELLIPSIS}"

MAX_LANES = 16
"""Threads of a model that the timeline shows; a machine of many cores has more of the same."""


def latency_plot(report: Report, width: int) -> str:
    """Every call of every model and batch size as a dot on a scale of the row's own median.

    So rows whose calls take 1 ms and 1 s can be compared in what the plot is for, their spread and their tail; the
    milliseconds stand beside them. Logarithmic if some call is far off.
    """
    beside = width > 600
    # Never cut: the batch size, which tells a model's rows apart.
    batch = max(len(f", batch {x.batch_size}") for m in report.models for x in m.latencies)
    names = _short_names(report, width / 2 - batch * _LETTER if beside else width - 8)
    rows = [(name, x) for name, m in zip(names, report.models, strict=True) for x in m.latencies]
    low = min(float(x.samples_ms.min()) / x.percentile(50) for _, x in rows)
    high = max(float(x.samples_ms.max()) / x.percentile(50) for _, x in rows)
    logarithmic = high > 4 or low < 0.25
    axis = _LogAxis(low, high, width) if logarithmic else _LinearAxis(low, high, width)
    parts, top = _legend([("p50", "p50"), ("p90", "p90"), ("p99", "p99"), ("dot", "one call")], width)
    height = 50 if beside else 66
    bottom = top + height * len(rows)
    parts += axis.draw(top, bottom, "time of a call / median of its row" + (", log scale" if logarithmic else ""))
    for n, (name, x) in enumerate(rows):
        y = top + height * n
        p50, p90, p99 = (x.percentile(q) for q in (50, 90, 99))
        figures = f"p50 {figure(p50)}, p90 {figure(p90)}, p99 {figure(p99)} ms"
        if beside:
            parts.append(_text(f"{name}, batch {x.batch_size}", axis.left, y + 16, "name"))
            parts.append(_text(figures, axis.right, y + 16, "muted", "end"))
        else:
            parts.append(_text(name, axis.left, y + 16, "name"))
            parts.append(_text(f"batch {x.batch_size}: {figures}", axis.left, y + 32, "muted"))
        middle = y + height - 17
        # Four lanes, in order: deterministic, and enough to see where calls pile up.
        dots = "".join(f"M{axis.at(ms / p50):.1f} {middle + 4 * (k % 4) - 6}h0" for k, ms in enumerate(x.samples_ms))
        parts.append(f'<path class="dots" d="{dots}"/>')
        for q, ms in ((50, p50), (90, p90), (99, p99)):
            mark = f"M{axis.at(ms / p50):.1f} {middle - 11}v22"
            parts.append(f'<path class="p{q}" d="{mark}"><title>p{q} {figure(ms)} ms</title></path>')
    return _svg(parts, width, bottom + 44, "Latency of each call, by model and batch size")


def stage_plot(report: Report, width: int) -> str:
    """What an image costs the machine, stage by stage, beside the measured time of the whole pipeline."""
    high = max(
        max(sum(map(m.stages.load, STAGES)), m.stages.limit_ms, m.end_to_end.ms_per_image) for m in report.models
    )
    axis = _LinearAxis(0.0, high, width)
    items = [(f"bar {s}", s) for s in STAGES] + [("limit", "L"), ("measured", "measured, files to masks")]
    parts, top = _legend(items, width)
    bottom = top + 56 * len(report.models)
    parts += axis.draw(top, bottom, "ms of the machine an image")
    names = _short_names(report, width - 8 - max(len(f", {m.runtime}") for m in report.models) * _LETTER)
    for n, (name, m) in enumerate(zip(names, report.models, strict=True)):
        y = top + 56 * n
        parts.append(_text(f"{name}, {m.runtime}", axis.left, y + 16, "name"))
        start = 0.0
        for s in STAGES:
            load = m.stages.load(s)
            x0, x1 = axis.at(start), axis.at(start + load)
            parts.append(
                f'<rect class="bar {s}" x="{x0:.1f}" y="{y + 23}" width="{max(x1 - x0, 0):.1f}" height="24">'
                f"<title>{s} {figure(load)} ms, {m.stages.share(s):.0%}</title></rect>"
            )
            label = next((t for t in (f"{s} {figure(load)}", figure(load)) if len(t) * _LETTER + 6 < x1 - x0), "")
            parts.append(_text(label, (x0 + x1) / 2, y + 40, "on-bar", "middle"))
            start += load
        parts.append(
            f'<path class="limit" d="M{axis.at(m.stages.limit_ms):.1f} {y + 19}v32"><title>L '
            f"{figure(m.stages.limit_ms)} ms an image</title></path>"
        )
        parts.append(
            f'<path class="measured" d="M{axis.at(m.end_to_end.ms_per_image):.1f} {y + 19}v32"><title>measured '
            f"{figure(m.end_to_end.ms_per_image)} ms an image</title></path>"
        )
    return _svg(parts, width, bottom + 44, "Time of each stage for one image, by model")


def timeline_plot(report: Report, width: int) -> str:
    """Which thread worked on what, over the first batches of a run of each model that has a timeline."""
    batch = max(len(f", batch {m.end_to_end.batch_size}") for m in report.models)
    models = [
        (m, name, list(dict.fromkeys(lane.thread for lane in m.timeline)))
        for m, name in zip(report.models, _short_names(report, width - 8 - batch * _LETTER), strict=True)
        if m.timeline
    ]
    left = 12 + _LETTER * max(len(_fit(t, 80)) for *_, threads in models for t in threads[:MAX_LANES])
    axis = _LinearAxis(0.0, max(lane.ends_ms[-1] for m, *_ in models for lane in m.timeline), width, left=round(left))
    parts, top = _legend([(f"bar {s}", s) for s in STAGES], width)
    heights = [24 + 24 * len(threads[:MAX_LANES]) + (20 if len(threads) > MAX_LANES else 0) for *_, threads in models]
    bottom = top + sum(heights)
    parts += axis.draw(top, bottom, "ms since the first image was read")
    y = top
    for (m, name, threads), height in zip(models, heights, strict=True):
        parts.append(_text(f"{name}, batch {m.end_to_end.batch_size}", 3, y + 16, "name"))
        for n, thread in enumerate(threads[:MAX_LANES]):
            lane_top = y + 24 + 24 * n
            parts.append(_text(_fit(thread, 80), axis.left - 6, lane_top + 15, "muted", "end"))
            parts += [_spans(lane, axis, lane_top + 2) for lane in m.timeline if lane.thread == thread]
        if len(threads) > MAX_LANES:
            parts.append(_text(f"and {len(threads) - MAX_LANES} threads more", axis.left, y + height - 6, "muted"))
        y += height
    return _svg(parts, width, bottom + 44, "Which thread worked in which stage, and when")


def _spans(lane: Lane, axis: _LinearAxis, top: int) -> str:
    """Half a pixel at least, so that the shortest is seen."""
    boxes = (
        (axis.at(start), max(axis.at(end) - axis.at(start), 0.5))
        for start, end in zip(lane.starts_ms, lane.ends_ms, strict=True)
    )
    outline = "".join(f"M{x:.1f} {top}h{wide:.1f}v18h-{wide:.1f}z" for x, wide in boxes)
    busy = sum(lane.ends_ms) - sum(lane.starts_ms)
    return (
        f'<path class="bar {lane.stage}" d="{outline}"><title>{escape(lane.thread)}: {lane.stage}, '
        f"{len(lane.starts_ms)} times, {figure(busy)} ms</title></path>"
    )


def tradeoff_plot(report: Report, width: int) -> str:
    """Mean IoU against throughput from files to masks, see `accuracy_plot`."""
    points = [
        (m.label, m.end_to_end.images_per_second, m.accuracy.summary)
        for m in report.models
        if m.accuracy and m.accuracy.per_image
    ]
    return accuracy_plot(points, width, across="images/s, files to masks")


def accuracy_plot(
    points: Sequence[tuple[str, float, Mapping[str, float]]],
    width: int,
    *,
    across: str,
    marks: Sequence[tuple[str, float]] = (),
) -> str:
    """Mean IoU against speed; bars are the 95 % intervals of the mean.

    Several points with a label so long that it would reach past its neighbours get numbers, and the names stand below.

    Args:
        points: of each model its label, its images/s, and the summary of its scores.
        width: in pixels.
        across: what the speeds are, the title of their axis.
        marks: names of other speeds, which have no score: dashed lines.
    """
    lows, highs = [s["jaccard_low"] for *_, s in points], [s["jaccard_high"] for *_, s in points]
    pad = max(0.01, 0.15 * (max(highs) - min(lows)))
    low, high = max(0.0, min(lows) - pad), min(1.0, max(highs) + pad)
    top, bottom = 30, 290
    axis = _LinearAxis(0.0, max([x for _, x, _ in points] + [x for _, x in marks]) * 1.1, width, left=52)

    def y_at(value: float) -> float:
        return bottom - (value - low) / (high - low) * (bottom - top)

    parts = [_text("mean IoU", 0, 16, "muted"), *axis.draw(top, bottom, across)]
    ticks = _ticks(low, high, 5)
    for tick, name in zip(ticks, _names(ticks), strict=True):
        parts.append(f'<path class="grid" d="M{axis.left} {y_at(tick):.1f}H{axis.right}"/>')
        parts.append(_text(name, axis.left - 6, y_at(tick) + 4, "muted", "end"))
    places = [(axis.at(speed), y_at(s["jaccard"])) for _, speed, s in points]
    for (x, y), (label, speed, s) in zip(places, points, strict=True):
        parts.append(
            f'<path class="interval" d="M{x:.1f} {y_at(s["jaccard_high"]):.1f}V{y_at(s["jaccard_low"]):.1f}"/>'
            f'<circle class="point" cx="{x:.1f}" cy="{y:.1f}" r="6"><title>{escape(label)}: IoU {s["jaccard"]:.4f}, '
            f"{figure(speed)} images/s</title></circle>"
        )
    taken = [_Box(x - 7, y - 7, x + 7, y + 7) for x, y in places]
    for n, (name, speed) in enumerate(marks):
        name = _fit(name, width - 20)
        wide, line = len(name) * _LETTER, top + 14 + 18 * n
        start = min(axis.at(speed) + 6, width - wide)
        parts.append(f'<path class="measured" d="M{axis.at(speed):.1f} {top}V{bottom}"/>')
        parts.append(_text(name, start, line, "muted"))
        taken.append(_Box(start, line - 13, start + wide, line + 4))
    names = [_fit(label, axis.right - axis.left) for label, *_ in points]
    key: list[str] = []
    if len(points) > 1 and max(map(len, names)) * _LETTER > (axis.right - axis.left) / 2:
        names = [str(n) for n in range(1, len(points) + 1)]
        for n, (label, *_) in enumerate(points, 1):
            key += textwrap.wrap(f"{n}: {label}", int((width - 8) / _LETTER), break_on_hyphens=False)
    for (x, y), name in zip(places, names, strict=True):
        # Not to the drawing's edge: a font of still wider letters needs the margin.
        box = _free_place(x, y, len(name) * _LETTER, taken, _Box(axis.left, top, axis.right, bottom))
        taken.append(box)
        parts.append(_text(name, box.left, box.bottom - 4, "name"))
    parts += [_text(line, 0, bottom + 64 + 18 * n, "key") for n, line in enumerate(key)]
    return _svg(parts, width, bottom + 44 + (18 * len(key) + 8 if key else 0), "Mean IoU against speed, by model")


class _Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: _Box) -> float:
        """Square pixels in common."""
        wide = min(self.right, other.right) - max(self.left, other.left)
        high = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, wide) * max(0.0, high)


def _free_place(x: float, y: float, wide: float, taken: Sequence[_Box], inside: _Box) -> _Box:
    """Where a label `wide` pixels wide goes beside the point (x, y): the first place that hides least."""
    high = 17
    tries: list[_Box] = []
    for step in range(6):
        for side in (1, -1):
            for left in (x + 11, x - 11 - wide, x - wide / 2):
                middle = y + side * 18 * step
                left = min(max(left, inside.left), inside.right - wide)
                if inside.top <= middle - high / 2 and middle + high / 2 <= inside.bottom:
                    tries.append(_Box(left, middle - high / 2, left + wide, middle + high / 2))
    return min(tries, key=lambda box: sum(box.overlap(other) for other in taken))


class _LinearAxis:
    """A horizontal axis from the last round value not above `low` to the first not below `high`."""

    def __init__(self, low: float, high: float, width: int, left: int = 3) -> None:
        self.left, self.right = left, width - 14
        step = _step(low, high, max(3, (self.right - left) // 90))
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        self.ticks = [round(k * step, 12) for k in range(first, max(last, first + 1) + 1)]
        self.low, self.high = self.ticks[0], self.ticks[-1]

    def at(self, value: float) -> float:
        """Pixels from the left."""
        return self.left + (value - self.low) / (self.high - self.low) * (self.right - self.left)

    def tick_names(self) -> list[str]:
        """With equally many decimals."""
        return _names(self.ticks)

    def draw(self, top: int, bottom: int, title: str) -> list[str]:
        """Grid lines, tick labels and a title."""
        parts = [f'<path class="grid" d="M{self.at(t):.1f} {top}V{bottom}"/>' for t in self.ticks]
        last = len(self.ticks) - 1
        ends = self.right + 12 - len(self.tick_names()[-1]) * _LETTER
        free = 0.0
        for n, (t, name) in enumerate(zip(self.ticks, self.tick_names(), strict=True)):
            room = len(name) * _LETTER
            start = self.left if n == 0 and self.left < 20 else ends if n == last else self.at(t) - room / 2
            # Where a label would lie on its neighbour, it is left out; the last one always stands.
            if n in (0, last) or (start >= free and start + room < ends):
                parts.append(_text(name, start + room / 2, bottom + 17, "muted", "middle"))
                free = start + room + 4
        return parts + [_text(title, self.right, bottom + 36, "muted", "end")]


class _LogAxis(_LinearAxis):
    """The same with ticks at 1, 2 and 5 times powers of ten."""

    def __init__(self, low: float, high: float, width: int) -> None:
        self.left, self.right = 3, width - 14
        steps = [
            m * 10.0**e for e in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1) for m in (1, 2, 5)
        ]
        first = max(t for t in steps if t <= low)
        last = min(t for t in steps if t >= high)
        self.ticks = [t for t in steps if first <= t <= last]
        self.low, self.high = first, last

    def tick_names(self) -> list[str]:
        """As short as they go: their decimals differ with their decades."""
        return [f"{t:.10g}" for t in self.ticks]

    def at(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.left + share * (self.right - self.left)


def _step(low: float, high: float, count: int) -> float:
    """1, 2 or 5 times a power of ten that divides [low, high] into about `count` parts."""
    raw = (high - low) / count if high > low else abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    return power * next(m for m in (1, 2, 5, 10) if m * power >= raw * 0.999)


def _ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round values that lie within [low, high]."""
    step = _step(low, high, count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _names(ticks: Sequence[float]) -> list[str]:
    """Ticks as text, with as many decimals as the one that needs most."""
    decimals = max(len(f"{t:.10g}".partition(".")[2]) for t in ticks)
    return [f"{t:.{decimals}f}" for t in ticks]


def _legend(items: Sequence[tuple[str, str]], width: int) -> tuple[list[str], int]:
    """Marks with their meaning, in as many lines as they need; and the y below them."""
    parts: list[str] = []
    x, y = 0.0, 14
    for kind, label in items:
        need = 24 + len(label) * _LETTER + 14
        if x + need > width and x > 0:
            x, y = 0.0, y + 20
        if kind.startswith("bar"):
            parts.append(f'<rect class="{kind}" x="{x:.1f}" y="{y - 10}" width="16" height="12"/>')
        elif kind == "dot":
            parts.append(f'<path class="dots" d="M{x + 8:.1f} {y - 4}h0"/>')
        else:
            parts.append(f'<path class="{kind}" d="M{x + 8:.1f} {y - 12}v16"/>')
        parts.append(_text(label, x + 22, y, "muted"))
        x += need
    return parts, y + 14


def _text(text: str, x: float, y: float, kind: str, anchor: str = "") -> str:
    if not text:
        return ""
    anchored = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}"{anchored}>{escape(text)}</text>'


def _short_names(report: Report, room: float) -> list[str]:
    """The models' labels, none wider than `room` pixels and no two alike.

    Models of one card differ only in their files' names, and perhaps in a few letters amid those: where labels that are
    cut in the middle come out alike, the cut moves to before the first letter in which they differ. Where that is not
    enough, they get the number of the model in the report, whose tables have the same order.
    """
    labels = [m.label for m in report.models]
    names = [_fit(label, room) for label in labels]
    for alike in _repeated(names):
        letters = itertools.zip_longest(*(labels[n] for n in alike))
        differ = next((place for place, several in enumerate(letters) if len(set(several)) > 1), 0)
        for n in alike:
            names[n] = _fit_from(labels[n], differ, room)
    for alike in _repeated(names):
        for n in alike:
            number = f"{n + 1}: "
            names[n] = number + _fit(labels[n], room - len(number) * _LETTER)
    return names


def _repeated(names: Sequence[str]) -> list[list[int]]:
    """The places of each name that is there more than once."""
    return [
        [n for n, other in enumerate(names) if other == name] for name, times in Counter(names).items() if times > 1
    ]


def _fit(text: str, room: float) -> str:
    """`text`, cut in the middle where it is wider than `room` pixels: a name's end says as much as its start."""
    letters = max(2, int(room / _LETTER))
    end = (letters - 1) // 2
    return text if len(text) <= letters else text[: letters - 1 - end] + _CUT + text[len(text) - end :]


def _fit_from(text: str, start: int, room: float) -> str:
    """`text`, cut to `room` pixels: its first letters, and what begins shortly before the letter `start`."""
    letters = max(2, int(room / _LETTER))
    head = letters // 3
    tail = text[max(start - 4, head) :]
    joint = _CUT if start - 4 > head else ""
    rest = letters - head - len(joint)
    return text[:head] + joint + (tail if len(tail) <= rest else tail[: rest - 1] + _CUT)


def _svg(parts: Sequence[str], width: int, height: float, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height:.0f}" width="{width}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
