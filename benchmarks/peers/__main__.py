"""``python -m isicrt.benchmarks.peers``: `isicrt segment` and its peers on the same images, side by side.

Each run is a process of its own. The runs are interleaved: `segment` and every peer once, then all of them again, so
that a machine that slows down slows all of them. A ratio is of the medians; its range is of the rounds.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import click

from isicrt._command import ModuleCommand, NamedPath
from isicrt.benchmarks.busy_machine import busy_processes
from isicrt.benchmarks.environment import provenance, read_environment, recorded_command
from isicrt.benchmarks.peers.race import PEERS, Entrant, Peer, Race, agreement, run_isicrt, run_peer
from isicrt.benchmarks.result_file import check_places, write_whole
from isicrt.benchmarks.workload import open_workload
from isicrt.engine import shipped
from isicrt.engine.errors import DataError, SettingsError
from isicrt.engine.onnx_file import read_onnx_card


@click.command(cls=ModuleCommand)
@click.option("--images", required=True, type=NamedPath(path_type=Path), help="As for isicrt segment.")
@click.option("--model", metavar="FILE|NAME", help="An .onnx file or a shipped model. [default: the shipped model]")
@click.option(
    "--float-model",
    metavar="FILE|NAME",
    help="The same network in float32, for the peers that run torch, if --model is int8. [default: of the shipped one]",
)
@click.option("--peers", "names", default=",".join(PEERS), show_default=True, help="Some of these, with commas.")
@click.option(
    "--baseline",
    type=NamedPath(exists=True, dir_okay=False, path_type=Path),
    help="An .onnx of another network for the peers, such as isicrt.benchmarks.plain_unet writes: what a user gains "
    "who comes from it. The masks are not compared then.",
)
@click.option("--runs", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "--load",
    type=click.IntRange(min=0, max=1024),
    default=0,
    show_default=True,
    help="Processes that keep a core busy each meanwhile: the same race on a machine that has other work.",
)
@click.option("--json", "json_file", type=NamedPath(dir_okay=False, path_type=Path), help="Write everything.")
@click.option("--markdown", "markdown_file", type=NamedPath(dir_okay=False, path_type=Path), help="Write the table.")
def command(
    images: Path,
    model: str | None,
    float_model: str | None,
    names: str,
    baseline: Path | None,
    runs: int,
    load: int,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Time isicrt segment beside other ways of doing the same work."""
    check_places(json_file, markdown_file)
    file, peers = shipped.resolve(model), _peers(names)
    race = _race(images, file, _float_model(file, float_model, peers, baseline), peers, baseline, runs, load)
    try:
        write_whole(json_file, json.dumps(race.to_dict(), indent=2) + "\n")
        write_whole(markdown_file, race.to_markdown())
    finally:  # hours are not lost where a file cannot be written
        click.echo(race.to_markdown(), nl=False)


def _peers(names: str) -> list[Peer]:
    """The peers of a comma-separated list.

    Raises:
        SettingsError: there is no such peer.
    """
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in PEERS]
    if unknown or not wanted:
        raise SettingsError(f"--peers {names}: there are {', '.join(PEERS)}")
    return [PEERS[name] for name in wanted]


def _float_model(model: Path, named: str | None, peers: list[Peer], baseline: Path | None) -> Path | None:
    """What the peers that run torch get in place of an int8 model; None where no other is needed.

    Raises:
        SettingsError: it is needed, was not named, and does not ship.
    """
    needed = baseline is None and read_onnx_card(model).precision == "int8" and not all(p.knows_int8 for p in peers)
    if not needed:
        return None
    if named is None and model == shipped.resolve(None):
        named = shipped.FLOAT
    if named is None:
        raise SettingsError(f"{model} is int8, which the peers that run torch do not know: name its --float-model")
    return shipped.resolve(named)


def _race(
    images: Path, model: Path, float_model: Path | None, peers: list[Peer], baseline: Path | None, runs: int, load: int
) -> Race:
    environment = read_environment()  # its load average is of other work only before the first run
    with tempfile.TemporaryDirectory(prefix="isicrt-peers-") as name:
        folder = Path(name)
        workload = open_workload(images, None, folder / "masks")
        found = workload.files
        _check_names(found)
        files = folder / "files.txt"
        files.write_text("".join(f"{os.path.abspath(image)}\n" for image in found), encoding="utf-8")  # noqa: PTH100
        missing = {p.name: [package for package in p.packages if find_spec(package) is None] for p in peers}
        ours, others = Entrant("isicrt"), [Entrant(p.name) for p in peers if not missing[p.name]]
        contents = workload.read_ahead()
        failed: dict[str, str] = {}
        with busy_processes(load):
            for round_ in range(1, runs + 1):
                click.echo(f"round {round_} of {runs}: isicrt", err=True)
                run_isicrt(ours, model, files, folder / "isicrt")
                for entrant in [other for other in others if other.name not in failed]:
                    click.echo(f"round {round_} of {runs}: {entrant.name}", err=True)
                    peer = PEERS[entrant.name]
                    network = baseline or (model if peer.knows_int8 else float_model or model)
                    try:
                        run_peer(entrant, peer, network, files, folder / entrant.name)
                        if baseline is None and round_ == runs:
                            entrant.agreement = agreement(folder / "isicrt", folder / entrant.name)
                    except DataError as error:  # another program's fault: the hours of all others are not lost for it
                        click.echo(f"{entrant.name} failed and is out of the race: {error}", err=True)
                        failed[entrant.name] = str(error)
        if others and len(failed) == len(others):
            raise DataError(f"no peer finished; the first: {next(iter(failed.values()))}")
        return Race(
            command=recorded_command(["python", "-m", "isicrt.benchmarks.peers", *sys.argv[1:]]),
            **provenance(model, float_model, baseline),
            images_sha256=contents,
            model=model.name,
            baseline=baseline.name if baseline else None,
            float_model=float_model.name if float_model else None,
            images=len(found),
            megabytes=sum(image.stat().st_size for image in found) / 1e6,
            isicrt=ours,
            peers=[other for other in others if other.name not in failed],
            failed=failed,
            left_out={name: packages for name, packages in missing.items() if packages},
            not_run=[name for name in PEERS if name not in missing],
            environment=environment,
            busy_processes=load,
        )


def _check_names(images: Sequence[Path]) -> None:
    """Peers write ``a.png`` for ``x/a.jpg``, into one folder."""
    names = [image.stem for image in images]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise DataError(f"{len(twice)} names are there twice, such as {twice[0]}; the peers need one folder of images")


if __name__ == "__main__":
    command()
