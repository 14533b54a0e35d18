"""Run folders of `isicrt reproduce` made of literals, for tests of what is made of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

MACHINE = {"cpu": "Abacus", "cores": 2, "os": "none", "versions": {}, "gpus": [], "load_average": None}
METRICS = (
    "epoch",
    "stage",
    "train_loss",
    "val_loss",
    "val_jaccard",
    "val_dice",
    "val_threshold_jaccard",
    "images_per_second",
    "seconds",
)


def write_run(
    folder: Path,
    *,
    layout: str = "light",
    rate: float = 1e-6,
    jaccards: Sequence[float] = (0.5, 0.6, 0.7),
    data: str = "d" * 64,
    weights: bytes = b"weights",
) -> Path:
    """One frozen epoch of 36 seconds; the rest of `jaccards` are tuned epochs of an hour."""
    folder.mkdir(parents=True)
    stages = [
        {"name": "frozen", "epochs": 1, "decoder_lr": 1e-3, "encoder_lr": 0.0},
        {"name": "tuned", "epochs": len(jaccards) - 1, "decoder_lr": 1e-4, "encoder_lr": rate},
    ]
    recipe = {"name": "r", "architecture": "unet", "layout": layout, "stages": stages}
    config = {"recipe": recipe, "data_sha256": data, "fold": 0, "seed": 7, "device": "cpu", "torch": "2.9"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = [",".join(METRICS)]
    for n, jaccard in enumerate(jaccards):
        stage, seconds, speed = ("frozen", 36, 100 + n) if n == 0 else ("tuned", 3600, 10 + n)
        lines.append(f"{n + 1},{stage},0.4,0.3,{jaccard},{jaccard + 0.1},{jaccard - 0.1},{speed},{seconds}")
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    run = {"parameters": 1_987_113, "training_images": 640, "validation_images": 160, "machine": MACHINE}
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "frozen.pt").write_bytes(b"frozen " + weights)
    (folder / "tuned.pt").write_bytes(b"tuned " + weights)
    return folder
