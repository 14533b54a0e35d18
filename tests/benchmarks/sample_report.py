"""A small report of literals, for the tests of everything that prints one."""

from __future__ import annotations

from isicrt.benchmarks.accuracy import Accuracy
from isicrt.benchmarks.environment import Environment
from isicrt.benchmarks.latency import Latency, Window
from isicrt.benchmarks.process import Usage
from isicrt.benchmarks.result import ModelResult, Protocol, Report
from isicrt.benchmarks.stages import StageSplit
from isicrt.benchmarks.throughput import EndToEnd, TimedRun
from isicrt.benchmarks.timeline import Lane
from isicrt.benchmarks.workload import WorkloadSummary
from isicrt.engine.pipeline import STAGES
from isicrt.engine.scores import ImageScores
from tests.tiny_models import darkness_card

BUSY = dict.fromkeys(STAGES, 0.25)


def sample_model(label: str = "darkness", *, scored: bool = True, slower: float = 1.0) -> ModelResult:
    """10 images/s and an IoU of 0.7; latencies of 1.1 ms at batch 1 and 6 ms at batch 8; infer is the bottleneck.

    93 CPU ms an image on 2 cores: L is 46.5 ms.
    """
    scores = {
        f"a/{n}.png": ImageScores(j, 2 * j / (1 + j), j if j >= 0.65 else 0.0, 0.9, 0.8, 0.95)
        for n, j in enumerate([0.6, 0.7, 0.8])
    }
    costs = {"decode": 10.0, "infer": 40.0 * slower, "restore": 2.0, "write": 1.0}
    return ModelResult(
        label=label,
        runtime="onnxruntime-cpu",
        file="darkness.onnx",
        sha256="ab" * 32,
        bytes=1_500_000,
        card=darkness_card(),
        latencies=(
            Latency(1, tuple(tuple(ms * slower for ms in w) for w in ((1.0, 1.1, 1.2, 1.0, 1.1, 3.0),) * 2)),
            Latency(8, ((6.0 * slower, 6.5 * slower), (6.1 * slower, 6.4 * slower))),
        ),
        stages=StageSplit(
            batch_size=8,
            images=3,
            cores=2,
            wall_ms={s: (ms * (2 if s == "infer" else 1),) * 2 for s, ms in costs.items()},
            cpu_ms={s: (ms * (2 if s == "infer" else 1),) * 2 for s, ms in costs.items()},
            crowded_ms=(costs["infer"] * 2.4, costs["infer"] * 2.6),
        ),
        end_to_end=EndToEnd(8, tuple(TimedRun(3, 0, 0.3 * slower, 2.4, BUSY, 0.45 * slower) for _ in range(2))),
        accuracy=Accuracy(scores) if scored else None,
        process=Usage(1.5, 2.0, 250.0),
        timeline=(
            Lane("decode-0", "decode", (0.0, 12.0), (10.0, 20.0)),
            Lane("infer", "infer", (21.0,), (60.0,)),
            Lane("write-0", "restore", (61.0, 66.0), (65.0, 66.01)),
            Lane("write-0", "write", (65.0,), (65.9,)),
        ),
    )


def sample_report(*models: ModelResult, rendered: bool = False, load_average: float = 0.1) -> Report:
    """A quiet machine; one `sample_model` if none is given."""
    return Report(
        command="isicrt bench --model darkness.onnx",
        date="2026-01-02T03:04:05+00:00",
        environment=Environment(
            versions={"python": "3.11.7", "isicrt": "0.1.0", "onnxruntime": "1.20.0"},
            cpu="Some CPU",
            cores=2,
            os="Linux",
            gpus=(),
            load_average=load_average,
        ),
        workload=WorkloadSummary("images", 3, 0.4, rendered, ()),
        protocol=Protocol((1, 8), 3, None, Window(), 32, 10),
        models=models or (sample_model(),),
    )
