"""Decoders in processes of their own: what one of them does costs its image."""

from __future__ import annotations

import errno
import io
import os
import signal
import struct
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from isicrt.benchmarks.rendered import render
from isicrt.engine import decode_worker
from isicrt.engine.errors import ImageError, SettingsError
from isicrt.engine.images import DamagedImageError, decode_image, may_take_long
from isicrt.engine.isolation import ImageDecoder
from isicrt.engine.onnx_runtime import OnnxRuntime
from isicrt.engine.pipeline import run_jobs
from isicrt.engine.pixel_budget import PixelBudget
from isicrt.engine.sources import find_jobs

SIZE = (24, 32)

# A worker whose codec does what the file's name says: a real crash, a real hang, in a real process.
TREACHEROUS = [
    sys.executable,
    "-c",
    f"""
import sys; sys.path[:] = {sys.path!r}
import ctypes, os, signal, time
from isicrt.engine import decode_worker
plain = decode_worker.decode_image
def decode(path, *arguments, **options):
    if "segfault" in path: ctypes.string_at(0)
    if "abort" in path: os.abort()
    if "killed" in path: os.kill(os.getpid(), signal.SIGKILL)
    if "exit" in path: os._exit(3)
    if "hang" in path: time.sleep(600)
    if "chatter" in path: os.write(1, b"rubbish")
    return plain(path, *arguments, **options)
decode_worker.decode_image = decode
decode_worker.main()
""",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    names = ("a", "b", "segfault", "c", "abort", "exit", "killed", "chatter", "hang", "d", "e")
    (tmp_path / "in").mkdir()
    for n, name in enumerate(names):
        Image.fromarray(render(n, (40, 60))[0]).save(tmp_path / "in" / f"{name}.bmp")
    return tmp_path / "in"


@pytest.mark.parametrize("isolate", ["auto", "always", "never"])
def test_the_pixels_are_the_same(tmp_path: Path, isolate: str) -> None:
    pixels = render(3, (60, 90))[0]
    with ImageDecoder(isolate) as decoder:
        for name in ("a.png", "a.tif", "a.jpg"):
            Image.fromarray(pixels).save(tmp_path / name)
            found, expected = decoder(tmp_path / name, SIZE), decode_image(tmp_path / name, SIZE)
            np.testing.assert_array_equal(found.pixels, expected.pixels)
            assert (found.native_size, found.stamp) == (expected.native_size, expected.stamp)


def _with_scans(count: int, first: str) -> bytes:
    """A JPEG with so many more scans. `first`: whether its first one has all components, or it is progressive."""
    file = io.BytesIO()
    Image.fromarray(render(1, (40, 60))[0]).save(file, format="JPEG", progressive=first == "progressive")
    data = file.getvalue()
    scan = data[data.rindex(b"\xff\xda") : -2]
    if first == "one_of_three":
        data = data.replace(b"\xff\xda\0\x0c\x03\x01\0\x02\x11\x03\x11", b"\xff\xda\0\x08\x01\x01\0")
    return data[:-2] + scan * count + data[-2:]


def _png_of(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + struct.pack(">II", width, height) + bytes(9)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(_with_scans(0, "all"), False, id="jpeg"),
        pytest.param(_with_scans(0, "progressive"), False, id="progressive"),
        pytest.param(_with_scans(40, "progressive"), True, id="progressive_of_many_scans"),
        pytest.param(_with_scans(40, "all"), False, id="one_scan_and_rubbish"),
        pytest.param(_with_scans(40, "one_of_three"), True, id="sequential_of_many_scans"),
        pytest.param(b"\xff\xd8\xff\xd0" + b"\xff\xda" * 40, True, id="jpeg_without_order"),
        pytest.param(b"\xff\xd8\xff", False, id="jpeg_without_anything"),
        pytest.param(_png_of(1000, 1000), False, id="png"),
        pytest.param(_png_of(8000, 8000), True, id="large_png"),
        pytest.param(_png_of(8000, 8000)[:20], False, id="torn_png"),
        pytest.param(b"BM", False, id="another_format"),
    ],
)
def test_what_may_take_long(data: bytes, expected: bool) -> None:
    assert may_take_long(data) is expected


def test_a_jpeg_that_never_ends_costs_its_process(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (6000, 6000)).save(file, format="JPEG", progressive=True)
    data = file.getvalue()
    (tmp_path / "a.jpg").write_bytes(data[:-2] + data[data.rindex(b"\xff\xda") : -2] * 5000 + data[-2:])
    with (
        ImageDecoder("auto", timeout=3) as decoder,
        pytest.raises(ImageError, match=r"a\.jpg: cannot be decoded: it took more than 3 s"),
    ):
        decoder(tmp_path / "a.jpg", SIZE)


@pytest.mark.parametrize("kind", ["WEBP", "TIFF"])
def test_the_limit_on_pixels_is_ours_and_not_pillows(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    Image.new("RGB", (60, 50)).save(path, format=kind)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with ImageDecoder("auto", max_pixels=5000) as decoder:
        assert decoder(path, SIZE).native_size == (50, 60)
    with pytest.raises(ImageError, match=r"it, or one of its tiles, is more than 0\.0002 megapixels") as caught:
        decode_image(path, SIZE)
    assert not isinstance(caught.value, DamagedImageError)


@pytest.mark.parametrize("isolate", ["always", "never"])
def test_errors_name_the_file_as_it_was_named(tmp_path: Path, isolate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.tif").write_bytes(b"II*\0")
    with ImageDecoder(isolate, max_pixels=10) as decoder:
        with pytest.raises(DamagedImageError, match=r"^a\.tif: cannot be decoded"):
            decoder("a.tif", SIZE)
        Image.new("RGB", (4, 4)).save("b.tif")
        with pytest.raises(ImageError, match=r"^b\.tif: .*4 x 4 is more than") as caught:
            decoder("b.tif", SIZE)
        assert not isinstance(caught.value, DamagedImageError)


def test_a_crash_costs_one_image_and_not_the_run(folder: Path, darkness_onnx: Path, tmp_path: Path) -> None:
    jobs = find_jobs(folder, tmp_path / "out")
    errors: dict[str, str | None] = {}
    with (
        OnnxRuntime(darkness_onnx, threads=1) as runtime,
        ImageDecoder("auto", command=TREACHEROUS) as decoder,
        ImageDecoder("auto", timeout=1, command=TREACHEROUS) as impatient,  # with what hangs, and with nothing else
    ):
        run_jobs(
            jobs,
            runtime,
            decode=lambda path, size: (impatient if path.stem == "hang" else decoder)(path, size),
            decode_threads=2,
            on_outcome=lambda o: errors.update({o.job.image.stem: o.error}),
        )
    reasons = {
        "segfault": "its decoder crashed (SIGSEGV)",
        "abort": "its decoder crashed (SIGABRT)",
        "killed": "its decoder crashed (SIGKILL)",
        "exit": "its decoder ended (exit code 3)",
        "hang": "it took more than 1 s (--decode-timeout)",
    }
    failed = {name: error for name, error in errors.items() if error}
    assert failed == {name: f"{folder / name}.bmp: cannot be decoded: {reason}" for name, reason in reasons.items()}
    assert sorted(path.stem for path in (tmp_path / "out").iterdir()) == ["a", "b", "c", "chatter", "d", "e"]


def test_a_worker_that_is_killed_from_outside(folder: Path) -> None:
    with ImageDecoder("always") as decoder:
        decoder(folder / "a.bmp", SIZE)
        (worker,) = decoder._idle
        os.kill(worker._process.pid, signal.SIGKILL)
        worker._process.wait()
        with pytest.raises(ImageError, match="SIGKILL"):
            decoder(folder / "b.bmp", SIZE)
        assert decoder(folder / "b.bmp", SIZE).native_size == (40, 60)


def test_a_worker_whose_time_ran_out_just_after_its_reply_is_not_used_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(threading.Timer):
        def cancel(self) -> None:
            super().cancel()
            self.function.__self__._overdue = True  # as `_expire` does before the process is gone

    with ImageDecoder("always") as decoder:
        monkeypatch.setattr(threading, "Timer", Late)
        decoder(folder / "a.bmp", SIZE)
        monkeypatch.undo()
        assert decoder._idle == []
        assert decoder(folder / "b.bmp", SIZE).native_size == (40, 60)


def test_what_a_worker_decodes_is_not_read_here_too(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(path: object) -> object:
        raise AssertionError(f"{path} was read")

    Image.fromarray(np.zeros((8, 9, 3), np.uint8)).save(folder / "named.jpg", format="BMP")
    with ImageDecoder() as decoder:
        monkeypatch.setattr("isicrt.engine.isolation.read_source", read)
        assert decoder(folder / "a.bmp", SIZE).native_size == (40, 60)
        with pytest.raises(AssertionError):
            decoder(folder / "named.jpg", SIZE)  # only to see what it is
        monkeypatch.undo()
        assert decoder(folder / "named.jpg", SIZE).native_size == (8, 9)
        assert len(decoder._idle) == 1, "a worker, whatever its name says"


def test_no_process_is_left(folder: Path) -> None:
    with ImageDecoder("always") as decoder:
        decoder(folder / "a.bmp", SIZE)
        (worker,) = decoder._idle
    assert worker._process.poll() is not None
    with pytest.raises(ImageError, match="the run is over"):
        decoder(folder / "a.bmp", SIZE)


def test_a_worker_that_cannot_be_started(folder: Path) -> None:
    with ImageDecoder("always", command=["/nowhere/python"]) as decoder, pytest.raises(ImageError, match="--isolate"):
        decoder(folder / "a.bmp", SIZE)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise SystemExit(1)", "ended (exit code 1)"),
        ("import isicrt_is_gone", "ended (exit code 1): ModuleNotFoundError: No module named 'isicrt_is_gone'"),
        ("import os; os.abort()", "crashed (SIGABRT)"),
    ],
)
def test_a_worker_that_ends_before_it_has_seen_an_image(folder: Path, code: str, reason: str) -> None:
    with ImageDecoder("always", command=[sys.executable, "-c", code]) as decoder, pytest.raises(ImageError) as caught:
        decoder(folder / "a.bmp", SIZE)
    begin, end = f"{folder / 'a.bmp'}: cannot be decoded: the decoder's process cannot be started: it ", ". --isolate"
    assert str(caught.value).removeprefix(begin).startswith(reason + end)
    assert not isinstance(caught.value, DamagedImageError), "it is no damage, and is to be tried again"


def test_a_worker_for_which_there_is_no_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    begin = f"{folder / 'a.bmp'}: cannot be decoded: the decoder's process cannot be started: "
    for place in ("subprocess.Popen", "isicrt.engine.isolation._scratch"):
        monkeypatch.setattr(place, refuse)
        with ImageDecoder("always") as decoder, pytest.raises(ImageError) as caught:
            decoder(folder / "a.bmp", SIZE)
        assert str(caught.value).startswith(begin)
        assert f": {os.strerror(errno.EMFILE)}. --isolate never" in str(caught.value)
        assert not isinstance(caught.value, DamagedImageError)


def test_a_worker_where_nothing_can_be_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with ImageDecoder("always") as decoder:
        assert decoder(folder / "a.bmp", SIZE).native_size == (40, 60)


@pytest.mark.skipif(sys.platform == "win32", reason="has no such limits")
def test_a_system_that_refuses_the_limit_on_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(*arguments: object) -> None:  # as macOS on Apple silicon
        asked.append(arguments)
        raise ValueError("current limit exceeds maximum limit")

    decode_worker._limit_memory(sys.maxsize)  # more than there are numbers for
    monkeypatch.setattr("resource.setrlimit", refuse)
    decode_worker._limit_memory(1)
    assert len(asked) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="shows the limits of a process")
@pytest.mark.parametrize(("max_pixels", "expected"), [(400_000_000, 12 << 30), (4_000_000_000, 128_000_000_000)])
def test_the_limit_on_memory_goes_with_that_on_pixels(folder: Path, max_pixels: int, expected: int) -> None:
    import resource

    with ImageDecoder("always", max_pixels=max_pixels) as decoder:
        decoder(folder / "a.bmp", SIZE)
        (worker,) = decoder._idle
        limit, hard = resource.prlimit(worker._process.pid, resource.RLIMIT_AS)
    assert limit == (expected if hard == resource.RLIM_INFINITY else min(expected, hard))


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"])
def test_libraries_start_no_thread_for_every_core(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "7")
    command = [sys.executable, "-c", f"import os; raise SystemExit('threads: ' + os.environ[{name!r}])"]
    with ImageDecoder("always", command=command) as decoder, pytest.raises(ImageError, match=r"threads: 1\."):
        decoder(folder / "a.bmp", SIZE)


@pytest.mark.parametrize(
    ("isolate", "options"), [("sometimes", {}), ("auto", {"timeout": 0}), ("auto", {"max_pixels": 0})]
)
def test_settings_out_of_range(isolate: str, options: dict[str, int]) -> None:
    with pytest.raises(SettingsError):
        ImageDecoder(isolate, **options)


def test_large_images_take_turns() -> None:
    budget, inside, most = PixelBudget(100, large=10), 0, 0
    lock = threading.Lock()

    def work(pixels: int) -> None:
        nonlocal inside, most
        with budget.admit(pixels):
            with lock:
                inside += pixels
                most = max(most, inside)
            with lock:
                inside -= pixels

    threads = [threading.Thread(target=work, args=(40,)) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert 40 <= most <= 80
    with budget.admit(1000):  # one alone is always let in
        assert not budget.is_waiting(threading.get_ident())


def test_a_thread_that_has_its_share_does_not_wait_for_another() -> None:
    budget, both, done = PixelBudget(100, large=10), threading.Barrier(2), []

    def work() -> None:
        with budget.admit(50):
            both.wait(30)  # the budget is spent
            with budget.admit(50):  # as an overlay decodes the image whose mask is being finished
                done.append(1)
            with budget.admit(50):
                done.append(1)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(done) == 4
    with budget.admit(100):  # all of it was given back, once
        pass
    assert budget._free == 100
