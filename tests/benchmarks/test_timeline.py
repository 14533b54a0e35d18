from __future__ import annotations

import threading
from pathlib import Path

from isicrt.benchmarks.timeline import Lane, record_timeline
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.pipeline import STAGES
from isicrt.engine.sources import find_jobs


def test_every_image_is_seen_in_every_stage(darkness_onnx: Path, rendered_pairs: Path, tmp_path: Path) -> None:
    with OnnxRuntime(darkness_onnx) as runtime:
        lanes = record_timeline(find_jobs(rendered_pairs / "images", tmp_path), runtime, 4, 2)
    assert list(dict.fromkeys(lane.stage for lane in lanes)) == list(STAGES)
    spans = {s: sum(len(lane.starts_ms) for lane in lanes if lane.stage == s) for s in STAGES}
    assert spans == {"decode": 12, "infer": 3, "restore": 12, "write": 12}
    assert min(min(lane.starts_ms) for lane in lanes) == 0
    for lane in lanes:
        # Decode threads write too.
        allowed = ("write", "decode") if lane.stage in ("restore", "write") else (lane.stage,)
        assert lane.thread.partition("-")[0] in allowed
        assert all(start <= end for start, end in zip(lane.starts_ms, lane.ends_ms, strict=True))
        # A thread does one thing at a time.
        assert all(end <= start for end, start in zip(lane.ends_ms, lane.starts_ms[1:], strict=False))
    (infer,) = [lane for lane in lanes if lane.stage == "infer"]
    assert min(lane.ends_ms[0] for lane in lanes if lane.stage == "decode") <= infer.starts_ms[0]
    assert infer.ends_ms[0] <= min(lane.starts_ms[0] for lane in lanes if lane.stage == "restore")
    assert threading.getprofile() is None


def test_round_trip() -> None:
    lane = Lane("decode-0", "decode", (0.0, 2.5), (1.0, 3.125))
    assert Lane.from_dict(lane.to_dict()) == lane
