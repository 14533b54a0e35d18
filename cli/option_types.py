"""Kinds of values that options take. Modules' own commands have them too."""

from __future__ import annotations

from isicrt._command import NamedPath as NamedPath
from isicrt._command import Number as Number
