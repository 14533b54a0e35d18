"""An evaluation made of literals, for tests of what is done with one."""

from __future__ import annotations

from pathlib import Path

from isicrt.benchmarks.environment import Environment
from isicrt.benchmarks.evaluation import Case, CaseScores, Scored, Unscored, compare
from isicrt.benchmarks.evaluation_result import Evaluation
from isicrt.benchmarks.report_protocol import ReportProtocol
from isicrt.benchmarks.scoring_protocol import OfficialProtocol, ScoringProtocol
from isicrt.engine.scores import ImageScores, Overlap
from tests.tiny_models import darkness_card


def sample_scores(jaccards: dict[str, float], *, official: bool = True) -> tuple[CaseScores, ...]:
    """Scores of images with these ids and Jaccard indices."""
    made = []
    for name, j in jaccards.items():
        dice = 2 * j / (1 + j)
        scores = ImageScores(j, dice, j if j >= 0.65 else 0.0, 0.9, 0.8, 0.95) if official else Overlap(j, dice)
        made.append(CaseScores(Case(name, Path(f"{name}.jpg"), Path(f"{name}.png")), (96, 128), scores, 0.25, 0.5))
    return tuple(made)


def sample_scored(
    label: str, jaccards: dict[str, float], *, protocol: ScoringProtocol, problems: tuple[Unscored, ...] = ()
) -> Scored:
    """One model's scores."""
    card = darkness_card()
    return Scored(
        label=label,
        file=f"{label}/best.pt",
        sha256="ab" * 32,
        runtime="onnxruntime-cpu",
        card=card,
        input=protocol.describe_input(card),
        threshold=protocol.threshold(card),
        clean_up=protocol.clean_up(card),
        images=len(jaccards) + len(problems),
        cases=sample_scores(jaccards, official=protocol.name == "official"),
        problems=problems,
    )


def sample_evaluation(*, official: bool = True) -> Evaluation:
    """Two models on three images, of which the second could not score one."""
    protocol: ScoringProtocol = OfficialProtocol() if official else ReportProtocol()
    frozen = sample_scored("frozen", {"a": 0.5, "b": 0.7, "c": 0.9}, protocol=protocol)
    unscored = Unscored("b", "images/b.jpg: is empty")
    tuned = sample_scored("tuned", {"a": 0.75, "c": 1.0}, protocol=protocol, problems=(unscored,))
    return Evaluation(
        command="isicrt evaluate frozen/best.pt tuned/best.pt --data data",
        date="2026-01-02T03:04:05+00:00",
        environment=Environment({"python": "3.11"}, "a CPU", 2, "an OS", (), 0.1),
        protocol=protocol,
        data="isic2016/test",
        split="test",
        models=(frozen, tuned),
        differences=tuple(compare(frozen, [tuned])),
    )
