from __future__ import annotations

import itertools
import threading
from pathlib import Path

from isicrt.benchmarks.timeline import Lane, record_timeline
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.pipeline import STAGES
from isicrt.engine.sources import find_jobs


def test_every_image_is_seen_in_every_stage(darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    with OnnxRuntime(darkness_onnx) as runtime:
        lanes = record_timeline(find_jobs(rendered_pairs / "images", tmp_path), tmp_path, runtime, 4, 2)
    assert list(dict.fromkeys(lane.stage for lane in lanes)) == list(STAGES)
    spans = {s: sum(len(lane.starts_ms) for lane in lanes if lane.stage == s) for s in STAGES}
    # Two threads, and blocks of at most four images, which are smaller in the end.
    assert 3 <= spans.pop("infer") <= 6
    assert spans == {"decode": 12, "restore": 12, "write": 12}
    assert min(min(lane.starts_ms) for lane in lanes) == 0
    for lane in lanes:
        assert lane.thread in ("worker-0", "worker-1")
        assert all(start <= end for start, end in zip(lane.starts_ms, lane.ends_ms, strict=True))
    for thread in {lane.thread for lane in lanes}:
        # A thread does one thing at a time, and a block's stages one after the other.
        first = {lane.stage: lane for lane in lanes if lane.thread == thread}
        spans_ms = sorted(pair for lane in first.values() for pair in zip(lane.starts_ms, lane.ends_ms, strict=True))
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans_ms))
        assert [first[s].starts_ms[0] for s in STAGES] == sorted(first[s].starts_ms[0] for s in STAGES)
    assert threading.getprofile() is None


def test_round_trip() -> None:
    lane = Lane("decode-0", "decode", (0.0, 2.5), (1.0, 3.125))
    assert Lane.from_dict(lane.to_dict()) == lane
