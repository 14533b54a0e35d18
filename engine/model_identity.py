"""What decides how a model's masks look: its file and its settings."""

from __future__ import annotations

import hashlib
import os
from typing import Any

from isicrt.engine.card import ModelCard


def mask_settings(card: ModelCard, threshold: float | None, mask_bits: int) -> dict[str, Any]:
    """What decides how a model's masks look, beside the model; `threshold`: None for the card's."""
    settings = {"threshold": card.threshold if threshold is None else threshold, "mask_bits": mask_bits}
    # Journals of before there was a `centre_sigma` do not name it.
    return settings | {name: rule for name, rule in card.clean_up.items() if name != "centre_sigma" or rule}


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def loaded_sha256(runtime: object, path: str | os.PathLike[str]) -> str:
    """SHA-256 of the model's file as it was when `runtime` loaded it; as it is now, where a runtime does not know."""
    digest = getattr(runtime, "digest", None)
    return digest if isinstance(digest, str) else file_sha256(path)
