"""Models to score, from what the command line names: shipped names, ONNX files, plans and checkpoints."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import click

from isicrt.cli.plan_notice import say_plan_is_code
from isicrt.engine.errors import MissingDependencyError
from isicrt.engine.last_names import last_names

if TYPE_CHECKING:
    from isicrt.benchmarks.evaluation import Candidate
    from isicrt.engine.runtime import Runtime


def open_candidates(models: Sequence[str], stack: ExitStack, threads: int | None) -> list[Candidate]:
    """The models, loaded; closed with the stack. A checkpoint runs on the GPU that torch sees, else as ONNX."""
    from isicrt.benchmarks.evaluation import Candidate, labels
    from isicrt.engine import shipped
    from isicrt.engine.model_identity import loaded_sha256
    from isicrt.engine.runtime import open_runtime

    wanted = models or (shipped.DEFAULT,)
    paths = [shipped.resolve(model) for model in wanted]
    # A shipped model is known by its name; a folder tells one best.pt from the other.
    named = [last_names(path) if Path(w).is_file() else path.name for w, path in zip(wanted, paths, strict=True)]
    runtimes: list[Runtime] = []
    digests: list[str] = []
    for path, name in zip(paths, named, strict=True):
        say_plan_is_code(path)
        file, digest, runtime = path, "", None
        if path.suffix.lower() == ".pt":
            if (runtime := _open_on_gpu(path)) is not None:
                click.echo(f"Scoring {name} by torch, on the GPU", err=True)
            else:
                click.echo(f"Exporting {name} to ONNX", err=True)
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="isicrt-evaluate-"))
                file, digest = _export(path, Path(folder))
        if runtime is None:
            runtime = open_runtime(file, threads=threads)
        runtimes.append(stack.enter_context(runtime))
        # Of an export the runtime knows its own digest, and not the checkpoint's.
        digests.append(digest or loaded_sha256(runtime, path))
    names = labels([(runtime.card.name, name) for runtime, name in zip(runtimes, named, strict=True)])
    return [
        Candidate(label, name, digest, runtime)
        for label, name, digest, runtime in zip(names, named, digests, runtimes, strict=True)
    ]


def _open_on_gpu(checkpoint: Path) -> Runtime | None:
    """None where torch, if it is installed, sees no GPU. An export of the report's widths takes a quarter of a minute,
    and ONNX Runtime a second an image for what a GPU does in a few milliseconds."""
    try:
        import torch

        if not torch.cuda.is_available():
            return None
        from isicrt.export.torch_runtime import TorchRuntime
    except ImportError as error:
        raise MissingDependencyError("PyTorch with ONNX", "train", str(error)) from error
    return TorchRuntime(checkpoint)


def _export(checkpoint: Path, folder: Path) -> tuple[Path, str]:
    """A checkpoint as ONNX, so that what is scored runs as it would run anywhere, and the checkpoint's SHA-256."""
    try:
        import onnx

        from isicrt.export.onnx_export import Deployed, export_onnx
        from isicrt.export.onnx_graph import set_card
        from isicrt.trainer.checkpoint import load_model
    except ImportError as error:
        raise MissingDependencyError("PyTorch with ONNX", "train", str(error)) from error
    digest = hashlib.sha256()
    network, card = load_model(checkpoint, read=digest.update)
    graph = export_onnx(Deployed(network, card).eval(), card)
    set_card(graph, card)
    path = folder / "model.onnx"
    onnx.save(graph, path)
    return path, digest.hexdigest()
