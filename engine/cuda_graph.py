"""CUDA graphs: the work of one batch, recorded once and launched with one call.

PyCUDA has no graphs, so these are the driver's own functions, through ctypes: no further package, whatever its CUDA.
https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__GRAPH.html
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from isicrt.engine.cuda_driver import driver_library, error_name

# Calls that would disturb the recording are refused in this thread only: others may allocate meanwhile.
_THREAD_LOCAL = 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL


class GraphError(Exception):
    """The driver could not record or launch a graph. The work can be queued call by call instead."""


class CudaGraph:
    """Work of one stream. Made, launched and freed where the device's context is current.

    Args:
        stream: handle of the stream that records; it must be idle and not the default stream.
        enqueue: queues the work on that stream. What it raises stops the recording.
        library: the CUDA driver.

    Raises:
        GraphError: the driver refuses, or an operation cannot be recorded.
    """

    def __init__(self, stream: int, enqueue: Callable[[], None], *, library: Any = None) -> None:
        self._cuda = driver_library() if library is None else library
        self._executable = ctypes.c_void_p()
        graph = ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), ctypes.c_int(_THREAD_LOCAL))
        try:
            enqueue()
        except BaseException:
            # The stream must not stay in recording mode. The graph of a failed recording is null or unfinished.
            self._cuda.cuStreamEndCapture(ctypes.c_void_p(stream), ctypes.byref(graph))
            if graph:
                self._cuda.cuGraphDestroy(graph)
            raise
        self._call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(self._executable), graph, ctypes.c_ulonglong(0))
        finally:
            self._cuda.cuGraphDestroy(graph)

    def launch(self, stream: int) -> None:
        """Queue the recorded work; returns before it is done. Raises GraphError."""
        self._call("cuGraphLaunch", self._executable, ctypes.c_void_p(stream))

    def free(self) -> None:
        """Give the graph back; it must not be running. May be called twice."""
        if self._executable:
            self._cuda.cuGraphExecDestroy(self._executable)
            self._executable = ctypes.c_void_p()

    def _call(self, name: str, *arguments: Any) -> None:
        code = getattr(self._cuda, name)(*arguments)
        if code != 0:
            raise GraphError(f"{name}: {error_name(self._cuda, code)}")
