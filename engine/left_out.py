"""What a search for images came upon and did not take, so that nobody takes its silence for an empty folder."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

SHOWN = 10
"""Folders that are named."""


@dataclass
class LeftOut:
    """Of one search."""

    outputs: dict[str, str] = field(default_factory=dict)
    """Folders that isicrt wrote, and what they hold: ``masks`` or ``overlays``."""
    formats: Counter[str] = field(default_factory=Counter)
    """Extensions of image formats that isicrt does not read, such as ``.heic``, or ``DICOM without an extension``, and
    how many files have them."""
    unread: dict[str, str] = field(default_factory=dict)
    """Folders that could not be read, and why."""

    def lines(self) -> list[str]:
        """What a run is to say of it. Folders that could not be read are not there: they are failures."""
        lines = [f"left out {folder}: {what} of an earlier run" for folder, what in self.outputs.items()]
        if len(lines) > SHOWN:
            lines[SHOWN:] = [f"left out {len(lines) - SHOWN} more folders of earlier runs"]
        return lines + ([self.passed_over()] if self.formats else [])

    def passed_over(self) -> str:
        """The line about `formats`."""
        ordered = sorted(self.formats.items(), key=lambda item: (-item[1], item[0]))
        counts = ", ".join(f"{files} {extension}" for extension, files in ordered)
        count = self.formats.total()
        return f"passed over {count} files that isicrt does not read: {counts}; convert them to .png or .jpg"

    def describe(self) -> dict[str, Any]:
        """The same as JSON."""
        return {
            "folders": [{"folder": folder, "holds": what} for folder, what in self.outputs.items()],
            "formats": dict(sorted(self.formats.items())),
            "unread": [{"folder": folder, "reason": reason} for folder, reason in self.unread.items()],
        }
