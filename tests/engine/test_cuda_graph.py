"""The order of the driver's calls, against a stand-in library that is compiled with NVIDIA's own header.

So a name, a type or a number of arguments that is not the driver's does not compile or does not link.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from isicrt.engine.cuda_graph import CudaGraph, GraphError

STAND_IN = r"""
#include <cuda.h>
#include <cstdio>
#include <cstring>

static char said[4096];
static const char *failing = "";
static void say(const char *text) { std::strcat(said, text); std::strcat(said, "\n"); }
static CUresult result(const char *name) {
    say(name);
    return std::strcmp(name, failing) ? CUDA_SUCCESS : CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
}
static const CUstream STREAM = (CUstream)0x5157;
static const CUgraph GRAPH = (CUgraph)0x6789abcdef01;
static const CUgraphExec EXECUTABLE = (CUgraphExec)0x7234567890ab;

extern "C" {
const char *log_of_calls() { return said; }
void reset(const char *name) { said[0] = 0; failing = strdup(name); }
CUresult cuStreamBeginCapture(CUstream stream, CUstreamCaptureMode mode) {
    if (stream != STREAM || mode != CU_STREAM_CAPTURE_MODE_THREAD_LOCAL) say("wrong arguments");
    return result("begin");
}
CUresult cuStreamEndCapture(CUstream stream, CUgraph *graph) {
    if (stream != STREAM) say("wrong arguments");
    CUresult code = result("end");
    *graph = code ? nullptr : GRAPH;
    return code;
}
CUresult cuGraphInstantiateWithFlags(CUgraphExec *executable, CUgraph graph, unsigned long long flags) {
    if (graph != GRAPH || flags) say("wrong arguments");
    CUresult code = result("instantiate");
    *executable = code ? nullptr : EXECUTABLE;
    return code;
}
CUresult cuGraphLaunch(CUgraphExec executable, CUstream stream) {
    if (executable != EXECUTABLE || stream != STREAM) say("wrong arguments");
    return result("launch");
}
CUresult cuGraphExecDestroy(CUgraphExec executable) { return result("destroy executable"); }
CUresult cuGraphDestroy(CUgraph graph) {
    if (graph != GRAPH) say("wrong arguments");
    return result("destroy graph");
}
CUresult cuGetErrorName(CUresult error, const char **text) {
    *text = "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED";
    return CUDA_SUCCESS;
}
}
"""
STREAM = 0x5157


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ to compile the stand-in with")
    places = [Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"]
    places += sorted(Path(sysconfig.get_paths()["purelib"]).glob("nvidia/cu*/include"))
    header = next((place for place in places if (place / "cuda.h").is_file()), None)
    if header is None:
        pytest.skip("no cuda.h of the CUDA toolkit (set CUDA_HOME)")
    folder = tmp_path_factory.mktemp("driver")
    (folder / "driver.cpp").write_text(STAND_IN)
    output = folder / "driver.so"
    command = [compiler, "-shared", "-fPIC", f"-I{header}", "-o", str(output), str(folder / "driver.cpp")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    library = ctypes.CDLL(str(output))
    library.log_of_calls.restype = ctypes.c_char_p
    return library


def _calls(library: ctypes.CDLL) -> list[str]:
    text: bytes = library.log_of_calls()
    return text.decode().split("\n")[:-1]


def test_a_graph_is_recorded_launched_and_freed_once(library: ctypes.CDLL) -> None:
    library.reset(b"")
    queued: list[list[str]] = []
    graph = CudaGraph(STREAM, lambda: queued.append(_calls(library)), library=library)
    assert queued == [["begin"]]
    graph.launch(STREAM)
    graph.launch(STREAM)
    graph.free()
    graph.free()
    assert _calls(library) == [
        *("begin", "end", "instantiate", "destroy graph"),
        *("launch", "launch", "destroy executable"),
    ]


@pytest.mark.parametrize(
    ("failing", "name", "calls"),
    [
        ("begin", "cuStreamBeginCapture_v2", ["begin"]),
        ("end", "cuStreamEndCapture", ["begin", "end"]),
        ("instantiate", "cuGraphInstantiateWithFlags", ["begin", "end", "instantiate", "destroy graph"]),
    ],
)
def test_what_the_driver_refuses_is_named_and_leaves_nothing_behind(
    library: ctypes.CDLL, failing: str, name: str, calls: list[str]
) -> None:
    library.reset(failing.encode())
    with pytest.raises(GraphError, match=f"{name}: CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED"):
        CudaGraph(STREAM, lambda: None, library=library)
    assert _calls(library) == calls


@pytest.mark.parametrize(("failing", "calls"), [("", ["begin", "end", "destroy graph"]), ("end", ["begin", "end"])])
def test_an_error_while_recording_ends_the_recording(library: ctypes.CDLL, failing: str, calls: list[str]) -> None:
    library.reset(failing.encode())

    def enqueue() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CudaGraph(STREAM, enqueue, library=library)
    assert _calls(library) == calls


def test_a_launch_that_fails_is_an_error(library: ctypes.CDLL) -> None:
    library.reset(b"launch")
    graph = CudaGraph(STREAM, lambda: None, library=library)
    with pytest.raises(GraphError, match="cuGraphLaunch"):
        graph.launch(STREAM)
