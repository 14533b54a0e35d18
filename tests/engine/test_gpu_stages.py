"""A run over the GPU's way, with all of the GPU on the CPU: scheduling, bad files, the journal, interruptions."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from isicrt.engine import run_threads
from isicrt.engine.errors import ModelError, SettingsError
from isicrt.engine.gpu_batch import ChainImage, PackedMask
from isicrt.engine.gpu_chain import GpuChain
from isicrt.engine.gpu_stages import GpuRoute
from isicrt.engine.images import Decoded, decode_image, read_mask
from isicrt.engine.isolation import ImageDecoder
from isicrt.engine.journal import JOURNAL_NAME, read_name
from isicrt.engine.ledger import Ledger
from isicrt.engine.model_identity import mask_settings
from isicrt.engine.outcome import STAGES, DecodeCounts, Outcome
from isicrt.engine.pipeline import THREAD_PREFIX, run_jobs
from isicrt.engine.sources import Job, find_jobs
from tests.engine.cpu_kernels import CpuKernels
from tests.engine.host_plan import HostPlan
from tests.engine.hostile_files import CASES, make_folder
from tests.journal_lines import read_journal


@pytest.fixture
def batches(host: HostPlan, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that are submitted."""
    sizes: list[int] = []
    submit = host.chain.submit

    def counted(images: Any) -> Any:
        sizes.append(len(images))
        return submit(images)

    monkeypatch.setattr(host.chain, "submit", counted)
    return sizes


def _run(host: HostPlan, jobs: Any, **options: Any) -> tuple[Any, dict[str, Outcome]]:
    outcomes: dict[str, Outcome] = {}
    options = {"batch_size": 4, "chain": host.chain, "decode_threads": 2, "write_threads": 2} | options
    summary = run_jobs(jobs, host.runtime, on_outcome=lambda o: outcomes.update({o.job.image.name: o}), **options)
    return summary, outcomes


def _jaccard(first: Any, second: Any) -> float:
    return float(np.count_nonzero(first & second) / np.count_nonzero(first | second))


def test_masks_are_those_of_the_cpu_and_batches_are_full(
    host: HostPlan, batches: list[int], rendered_pairs: Path, tmp_path: Path
) -> None:
    jobs = find_jobs(rendered_pairs / "images", tmp_path / "gpu")[:11]
    summary, outcomes = _run(host, jobs)
    assert batches == [4, 4, 3]
    assert (summary.images, summary.failed) == (11, 0)
    assert summary.decoded == DecodeCounts(gpu=11)
    assert tuple(summary.stage_seconds) == STAGES
    assert all(value > 0 for value in summary.stage_seconds.values())
    others = find_jobs(rendered_pairs / "images", tmp_path / "cpu")[:11]
    assert run_jobs(others, host.onnx).decoded is None
    for job, other in zip(jobs, others, strict=True):
        mask = read_mask(job.mask)
        assert mask.shape == outcomes[job.image.name].native_size
        assert mask.mean() == outcomes[job.image.name].lesion_fraction
        assert _jaccard(mask, read_mask(other.mask)) > 0.98


def test_several_batches_are_in_flight(
    host: HostPlan, rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log: list[str] = []
    for name in ("submit", "collect"):
        call = getattr(host.chain, name)
        monkeypatch.setattr(host.chain, name, lambda x, call=call, name=name: (log.append(name), call(x))[1])
    _run(host, find_jobs(rendered_pairs / "images", tmp_path)[:12])
    assert host.chain.depth == 2
    assert log == ["submit", "submit", "collect", "submit", "collect", "collect"]


@pytest.fixture
def odd_files(rendered_pairs: Path, tmp_path: Path) -> dict[str, bool]:
    """Files in tmp_path / "in", and whether they are images."""
    folder = tmp_path / "in"
    folder.mkdir()
    good = sorted((rendered_pairs / "images").iterdir())
    data = good[0].read_bytes()
    for n in range(3):
        (folder / f"good{n}.jpg").write_bytes(good[n].read_bytes())
    with Image.open(good[1]) as image:
        image.save(folder / "other.png")
        image.convert("CMYK").save(folder / "cmyk.jpg")
        image.save(folder / "web.webp")
        exif = Image.Exif()
        exif[0x0112] = 6  # turned by a quarter
        image.save(folder / "turned.jpg", exif=exif, quality=95)
    (folder / "half.jpg").write_bytes(data[: len(data) // 2])
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.jpg").touch()
    (folder / "header.jpg").write_bytes(data[:300] + b"\xff\xd9")
    fine = ("good0.jpg", "good1.jpg", "good2.jpg", "other.png", "cmyk.jpg", "web.webp", "turned.jpg")
    return {path.name: path.name in fine for path in folder.iterdir()}


def test_a_bad_file_costs_itself_and_the_journal_says_so(
    host: HostPlan, odd_files: dict[str, bool], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    jobs = find_jobs(tmp_path / "in", out)
    jobs = [*jobs, Job(tmp_path / "in" / "gone.jpg", out / "gone.png")]

    def run(**options: Any) -> tuple[Any, dict[str, Outcome]]:
        with (
            Ledger(out, jobs, model={"sha256": "1"}, settings={}, **options) as ledger,
            ImageDecoder(timeout=30) as decoder,
        ):
            return _run(host, jobs, ledger=ledger, decode=decoder)

    summary, outcomes = run()
    odd_files["gone.jpg"] = False
    assert {name: outcome.error is None for name, outcome in outcomes.items()} == odd_files
    assert (summary.images, summary.failed) == (12, 5)
    with Image.open(tmp_path / "in" / "turned.jpg") as image:  # the stored grid, whatever EXIF says
        assert outcomes["turned.jpg"].native_size == image.size[::-1] == read_mask(out / "turned.png").shape
    assert outcomes["half.jpg"].damaged is not None
    assert outcomes["gone.jpg"].damaged is None
    lines = [json.loads(line) for line in (out / JOURNAL_NAME).read_text().splitlines()]
    entries = {line["image"]: line for line in lines if "status" in line}
    assert {name: line["status"] == "done" for name, line in entries.items()} == odd_files
    announced = {name for line in lines for name in line.get("writing", ())}
    assert announced == {f"{Path(name).stem}.png" for name, fine in odd_files.items() if fine}
    for name in ("good0.jpg", "other.png", "half.jpg"):
        stamp = decode_stamp(tmp_path / "in" / name)
        assert (entries[name]["image_size"], entries[name]["image_crc"]) == stamp

    summary, outcomes = run()  # what is done is skipped, and bytes that were no good are not tried again
    assert (summary.images, summary.failed, summary.skipped) == (5, 5, 7)
    summary, _ = run(existing="overwrite")
    assert (summary.images, summary.failed, summary.skipped) == (12, 5, 0)


def decode_stamp(path: Path) -> tuple[int, int]:
    import zlib

    data = path.read_bytes()
    return len(data), zlib.crc32(data)


def test_what_the_gpu_refuses_is_decoded_on_the_cpu(
    host: HostPlan, rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file of a batch, or the whole batch where the decoder raises; one that the CPU refuses too has failed."""
    real = host.chain._decoder.decode

    def decode(contents: Any, stream: int) -> Any:
        return [None if n % 2 else image for n, image in enumerate(real(contents, stream))]

    monkeypatch.setattr(host.chain._decoder, "decode", decode)
    jobs = find_jobs(rendered_pairs / "images", tmp_path)[:6]
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(jobs[0].image.read_bytes().replace(b"\xff\xdb", b"\xff\xef"))  # no quantisation table any more
    summary, outcomes = _run(host, [jobs[0], Job(bad, tmp_path / "bad.png"), *jobs[1:]], decode_threads=1)
    assert (summary.images, summary.failed) == (7, 1)
    assert summary.decoded is not None
    assert summary.decoded.gpu + summary.decoded.cpu == 6
    assert 0 < summary.decoded.refused == summary.decoded.cpu
    assert str(outcomes["bad.jpg"].error).startswith(f"{bad}: ")
    assert outcomes["bad.jpg"].damaged is not None

    class Broken:
        def decode(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("unsupported")

    monkeypatch.undo()
    monkeypatch.setattr(host.chain._decoder, "_decoder", Broken())
    others = find_jobs(rendered_pairs / "images", tmp_path / "again")[:6]
    summary = _run(host, others)[0]
    assert summary.failed == 0
    assert summary.decoded == DecodeCounts(cpu=6, refused=6), "of this run alone"
    run_jobs(find_jobs(rendered_pairs / "images", tmp_path / "cpu")[:6], host.onnx)
    for job in others:
        np.testing.assert_array_equal(read_mask(job.mask), read_mask(tmp_path / "cpu" / job.mask.name))


def test_a_batch_of_large_images_is_smaller(
    host: HostPlan, batches: list[int], rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GpuRoute, "batch_pixels", 2 * 128 * 96)
    jobs = [job for job in find_jobs(rendered_pairs / "images", tmp_path) if decode_size(job.image) == (96, 128)]
    assert len(jobs) == 6
    assert _run(host, jobs)[0].failed == 0
    assert batches == [2, 2, 2]
    batches.clear()
    monkeypatch.setattr(GpuRoute, "batch_pixels", 1)  # one alone always goes
    assert _run(host, jobs[:3])[0].failed == 0
    assert batches == [1, 1, 1]


def decode_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size[::-1]


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (1.0, 12), (0.5, None)])
def test_cpu_threads_decode_a_share_of_the_jpegs(
    host: HostPlan, rendered_pairs: Path, tmp_path: Path, share: float, expected: int | None
) -> None:
    seen: list[set[str]] = []
    for run in ("a", "b"):
        names: set[str] = set()

        def decode(path: Path, size: tuple[int, int], names: set[str] = names) -> Decoded:
            names.add(path.name)
            return decode_image(path, size)

        jobs = find_jobs(rendered_pairs / "images", tmp_path / run)
        summary = _run(host, jobs, decode=decode, cpu_share=share)[0]
        assert summary.failed == 0
        assert summary.decoded == DecodeCounts(gpu=12 - len(names), cpu=len(names))
        seen.append(names)
    assert seen[0] == seen[1]
    assert len(seen[0]) == expected if expected is not None else 0 < len(seen[0]) < 12


def test_an_error_of_the_device_ends_the_run_and_leaves_whole_masks(
    host: HostPlan, rendered_pairs: Path, tmp_path: Path
) -> None:
    endless = (job for _ in iter(int, 1) for job in find_jobs(rendered_pairs / "images", tmp_path))
    seen: list[Outcome] = []

    def fail_later(outcome: Outcome) -> None:
        seen.append(outcome)
        if len(seen) == 8:
            for context in host.contexts:
                context.fails = True

    with pytest.raises(ModelError, match="could not segment a batch of 4: an illegal memory access"):
        run_jobs(endless, host.runtime, batch_size=4, chain=host.chain, on_outcome=fail_later)
    assert len(seen) >= 8
    for path in tmp_path.iterdir():
        read_mask(path)


def test_an_interruption_drains(host: HostPlan, rendered_pairs: Path, tmp_path: Path) -> None:
    endless = (job for _ in iter(int, 1) for job in find_jobs(rendered_pairs / "images", tmp_path))
    seen: list[Outcome] = []
    with pytest.raises(KeyboardInterrupt):
        run_jobs(
            endless,
            host.runtime,
            batch_size=4,
            chain=host.chain,
            on_outcome=seen.append,
            should_stop=lambda: len(seen) > 20,
        )
    assert len(seen) > 20
    assert all(outcome.error is None for outcome in seen)
    assert not list(tmp_path.glob(".*"))
    assert len(host.chain._free) == host.chain.depth


def test_a_gpu_that_hangs_does_not_hold_an_interrupted_run(
    host: HostPlan, rendered_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_threads, "STOP_SECONDS", 0.4)
    entered, released = threading.Event(), threading.Event()
    collect = host.chain.collect

    def hang(ticket: Any) -> Any:
        entered.set()
        assert released.wait(60)
        return collect(ticket)

    monkeypatch.setattr(host.chain, "collect", hang)
    with pytest.raises(KeyboardInterrupt):
        run_jobs(
            find_jobs(rendered_pairs / "images", tmp_path),
            host.runtime,
            batch_size=4,
            chain=host.chain,
            should_stop=entered.is_set,
        )
    hanging = [thread for thread in threading.enumerate() if thread.name.startswith(THREAD_PREFIX)]
    assert hanging
    released.set()
    for thread in hanging:
        thread.join(60)
    assert list(tmp_path.iterdir()) == []
    assert len(host.chain._free) == host.chain.depth


def test_a_decoder_that_decodes_nothing_is_found_out_at_once(
    host: HostPlan, kernels: CpuKernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = host.chain._decoder
    decoder.check(host.slots[0].stream.handle)
    monkeypatch.setattr(decoder, "decode", lambda contents, stream: [None])
    with pytest.raises(ModelError, match="decodes no JPEG on this GPU"):
        GpuChain(host.runtime, decoder=decoder, kernels=kernels)


@pytest.mark.parametrize(
    ("counts", "falls_back"),
    [
        (DecodeCounts(), False),
        (DecodeCounts(gpu=1000), False),
        (DecodeCounts(cpu=1000), False),  # all by choice
        (DecodeCounts(gpu=997, cpu=3, refused=3), False),
        (DecodeCounts(gpu=10, cpu=3, refused=3), False),  # a few
        (DecodeCounts(gpu=10, cpu=4, refused=4), True),
        (DecodeCounts(gpu=1000, cpu=10, refused=10), False),
        (DecodeCounts(gpu=1000, cpu=11, refused=11), True),
        (DecodeCounts(cpu=1, refused=1), True),  # every one
    ],
)
def test_when_a_run_is_not_the_gpus_any_more(counts: DecodeCounts, falls_back: bool) -> None:
    assert counts.falls_back == falls_back


def test_a_chain_of_another_threshold_is_refused(host: HostPlan) -> None:
    with pytest.raises(SettingsError, match=r"the chain has another model or threshold \(0.5\) than the run \(0.4\)"):
        run_jobs([], host.runtime, batch_size=4, threshold=0.4, chain=host.chain)
    with pytest.raises(SettingsError, match="CPU share 2"):
        run_jobs([], host.runtime, batch_size=4, chain=host.chain, cpu_share=2)


def test_an_image_that_was_decoded_on_the_cpu_has_its_pixels(host: HostPlan) -> None:
    """Rows of the CPU and of the GPU may be mixed in a batch, and the black row of an error is nobody's mask."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image = ChainImage(Path("a.png"), (64, 64), None, pixels, None)
    (mask,) = host.chain.collect(host.chain.submit([image]))
    assert isinstance(mask, PackedMask)
    expected = host.onnx.infer(pixels[None])[0] >= 128
    np.testing.assert_array_equal(mask.clean(keep_largest=False, fill_holes=False).whole(), expected)


def test_hostile_files_end_on_the_gpus_way_as_the_table_says(host: HostPlan, tmp_path: Path) -> None:
    make_folder(tmp_path / "in")
    jobs = find_jobs(tmp_path / "in", tmp_path / "out", on_clash="extension")
    settings = mask_settings(host.runtime.card, None, 1)
    with Ledger(tmp_path / "out", jobs, model={"sha256": "0"}, settings=settings) as ledger:
        _, outcomes = _run(host, jobs, ledger=ledger, decode_threads=1, decode_timeout=120)
    assert sorted(outcomes) == sorted(CASES)
    lines = [line for line in read_journal(tmp_path / "out") if "status" in line]
    assert {read_name(line["image"]): line["status"] == "done" for line in lines} == {
        name: outcome.error is None for name, outcome in outcomes.items()
    }
    wrong = []
    for name, (_, expected) in CASES.items():
        outcome = outcomes[name]
        if isinstance(expected, str):
            fine = outcome.error is not None and bool(re.search(expected, outcome.error))
        else:
            fine = outcome.error is None and outcome.native_size == expected == read_mask(outcome.job.mask).shape
        if not fine:
            wrong.append((name, expected, outcome.error, outcome.native_size))
    assert wrong == []
