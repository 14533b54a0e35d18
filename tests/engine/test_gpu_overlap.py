"""Batches of the GPU's chain beside each other: what is decoded while others are waited for, and what closing does."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from isicrt.engine import gpu_chain
from isicrt.engine.errors import ModelError
from isicrt.engine.gpu_batch import read_chain_image
from isicrt.engine.gpu_decode import DeviceImage
from tests.engine.host_plan import HostPlan


def test_closing_a_chain_that_is_in_use_waits_and_ends_it(host: HostPlan, rendered_pairs: Path) -> None:
    images = [read_chain_image(file, (64, 64)) for file in sorted((rendered_pairs / "images").iterdir())[:4]]
    ticket = host.chain.submit(images)
    ticket.queued.result(60)
    held = list(ticket.held)
    assert len(held) == 4
    assert all(image.owner is not None for image in held)
    host.chain.close()
    assert all(image.owner is None for image in held), "nvImageCodec would free it on a stream that is gone"
    with pytest.raises(ModelError, match="decoding on the GPU is closed"):
        host.chain.collect(ticket)
    with pytest.raises(ModelError, match="decoding on the GPU is closed"):
        host.chain.submit(images)


def test_batches_are_decoded_while_others_are_waited_for(
    host: HostPlan, rendered_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And closing waits for the one that is being decoded, and begins none after it."""
    images = [read_chain_image(file, (64, 64)) for file in sorted((rendered_pairs / "images").iterdir())[:4]]
    decode, may_decode, decoding = host.chain._decoder.decode, threading.Semaphore(1), threading.Semaphore(0)
    threads = set()

    def held_up(files: Sequence[bytes], stream: int) -> Any:
        threads.add(threading.current_thread())
        decoding.release()
        assert may_decode.acquire(timeout=60)
        return decode(files, stream)

    monkeypatch.setattr(host.chain._decoder, "decode", held_up)
    first, second = (host.chain.submit(images) for _ in range(2))
    assert decoding.acquire(timeout=60)
    assert decoding.acquire(timeout=60), "the second is decoded before anybody has collected the first"
    assert len(host.chain.collect(first)) == 4
    third = host.chain.submit(images)
    assert not second.queued.done()
    assert not third.queued.running()
    closing = threading.Thread(target=host.chain.close)
    closing.start()
    while not third.queued.cancelled():
        assert closing.is_alive(), "closed while a batch was being decoded"
        time.sleep(0.01)
    may_decode.release()
    closing.join(60)
    assert not closing.is_alive()
    assert not decoding.acquire(blocking=False)
    assert threads.isdisjoint({threading.current_thread(), closing})
    assert len(threads) == 1
    assert not second.held
    with pytest.raises(ModelError, match="decoding on the GPU is closed"):
        host.chain.collect(second)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_waits_for_the_batch_that_is_being_queued(
    host: HostPlan, rendered_pairs: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """The second time it does not wait, and closing does."""
    images = [read_chain_image(file, (64, 64)) for file in sorted((rendered_pairs / "images").iterdir())[:4]]
    decode, may_decode = host.chain._decoder.decode, threading.Event()
    decoded: list[DeviceImage] = []

    def held_up(files: Sequence[bytes], stream: int) -> Any:
        assert may_decode.wait(60)
        decoded.extend(found := decode(files, stream))
        return found

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(host.chain._decoder, "decode", held_up)
    ticket = host.chain.submit(images)
    monkeypatch.setattr(ticket.queued, "result", interrupt)
    if times == 2:
        monkeypatch.setattr(gpu_chain, "wait", interrupt, raising=False)
    timer = threading.Timer(0.3, may_decode.set)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        host.chain.collect(ticket)
    if times == 1:
        assert ticket.queued.done()
        assert len(host.chain._free) == host.chain.depth
        assert len(host.chain.collect(host.chain.submit(images))) == 4
    else:
        assert len(host.chain._free) == host.chain.depth - 1, "its lane is in use"
        host.chain.close()
    timer.join()
    assert len(decoded) == (8 if times == 1 else 4)
    assert all(image.owner is None for image in decoded)


def test_a_device_that_is_gone_keeps_no_thread(
    host: HostPlan, rendered_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> Any:
        raise RuntimeError("no context")

    with monkeypatch.context() as patched:
        patched.setattr(host.chain._device, "current", gone)
        with pytest.raises((RuntimeError, ModelError), match="no context"):
            host.chain.close()
    for pool in (host.chain._queueing, host.chain._threads):
        with pytest.raises(RuntimeError, match="after shutdown"):
            pool.submit(print)


def test_ctrl_c_while_closing_gives_everything_back(
    host: HostPlan, rendered_pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not before the batch that is being decoded has ended: it would write where nothing is any more."""
    images = [read_chain_image(file, (64, 64)) for file in sorted((rendered_pairs / "images").iterdir())[:4]]
    decode, shutdown, may_decode = host.chain._decoder.decode, host.chain._queueing.shutdown, threading.Event()
    decoded: list[DeviceImage] = []

    def held_up(files: Sequence[bytes], stream: int) -> Any:
        assert may_decode.wait(60)
        decoded.extend(found := decode(files, stream))
        return found

    def interrupted(**options: Any) -> None:
        if timer.is_alive():
            return shutdown(**options)
        shutdown(wait=False, **options)
        timer.start()
        raise KeyboardInterrupt

    monkeypatch.setattr(host.chain._decoder, "decode", held_up)
    ticket = host.chain.submit(images)
    monkeypatch.setattr(host.chain._queueing, "shutdown", interrupted)
    timer = threading.Timer(0.3, may_decode.set)
    with pytest.raises(KeyboardInterrupt):
        host.chain.close()
    assert ticket.queued.done()
    assert len(decoded) == 4
    assert all(image.owner is None for image in decoded)
    assert host.chain._kernels is None
