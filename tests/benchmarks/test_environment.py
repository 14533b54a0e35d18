from __future__ import annotations

import json
import os

from isicrt._version import __version__
from isicrt.benchmarks.environment import Environment, read_environment


def test_the_environment_of_this_machine() -> None:
    environment = read_environment()
    assert environment.versions["isicrt"] == __version__
    assert {"python", "numpy", "onnxruntime"} <= set(environment.versions)
    assert 1 <= environment.cores <= (os.cpu_count() or 1)
    assert environment.cpu
    assert environment.os
    assert Environment.from_dict(json.loads(json.dumps(environment.to_dict()))) == environment
