"""CUDA kernels that give the same bytes as libraries on the CPU: Pillow's antialiased resize, OpenCV's upsampling.

isicrt's own way on the CPU resizes by another library, which rounds one value in nine to the neighbouring level, and
scales large JPEGs while it decodes them (`isicrt.engine.geometry`). The arithmetic is that of the two libraries,
integer where theirs is. Doubles are used as they use them, and no product is fused with a sum (``--fmad=false``), so
that not one rounding differs. The source is plain C++ but for the indices of threads: a test compiles it for the CPU
and compares it byte by byte.

One launch is for many images of a batch, each a layer of the grid: what a launch costs the thread that queues it is
much for one image. What the kernels must know of each of them is in tables, see `isicrt.engine.gpu_tables`.

Pillow 13 shrinks the height of a tall portrait first, which is less work. The kernels always begin with the width, as
Pillow did before, and differ by one level of 255 there.
"""

from __future__ import annotations

from typing import Any

from isicrt.engine.cuda_memory import CudaDevice
from isicrt.engine.errors import ModelError
from isicrt.engine.gpu_ptx import read_ptx

SOURCE = r"""
typedef unsigned char uint8;

#define FIRST(axis) (blockIdx.axis * blockDim.axis + threadIdx.axis)
#define STEP(axis) (gridDim.axis * blockDim.axis)

// Pillow, libImaging/Resample.c: precompute_coeffs with the triangle filter, then normalize_coeffs_8bpc.
// A row of `axes`: pixels in, pixels out, taps, address. There is for each output pixel the first pixel that it is made
// of, then for each their number, then for each `taps` weights in units of 2^-22.
extern "C" __global__ void triangle_weights(const long long *axes)
{
    const long long *axis = axes + 4LL * blockIdx.z;
    const int size_in = axis[0], size_out = axis[1], taps = axis[2];
    int *first = (int *)axis[3], *count = first + size_out, *weights = count + size_out;
    const double scale = (double)size_in / size_out;
    const double stretch = scale < 1.0 ? 1.0 : scale;
    for (int out = FIRST(x); out < size_out; out += STEP(x)) {
        const double center = (out + 0.5) * scale;
        int low = (int)(center - stretch + 0.5);
        if (low < 0) low = 0;
        int high = (int)(center + stretch + 0.5);
        if (high > size_in) high = size_in;
        double sum = 0.0;
        for (int i = 0; i < high - low; i++) {
            double x = (i + low - center + 0.5) * (1.0 / stretch);
            if (x < 0.0) x = -x;
            sum += x < 1.0 ? 1.0 - x : 0.0;
        }
        for (int i = 0; i < taps; i++) {
            double x = (i + low - center + 0.5) * (1.0 / stretch);
            if (x < 0.0) x = -x;
            double weight = i < high - low && x < 1.0 ? 1.0 - x : 0.0;
            if (sum != 0.0) weight /= sum;
            weights[(long long)out * taps + i] = (int)(0.5 + weight * (1 << 22));
        }
        first[out] = low;
        count[out] = high - low;
    }
}

__device__ inline uint8 clipped(int sum)
{
    sum >>= 22;
    return sum < 0 ? 0 : sum > 255 ? 255 : sum;
}

// A row of `images`: address of the pixels (height x width x 3), bytes from row to row, height, taps and address of the
// weights along the rows, address of what is between (height x width_out x 3), taps and address of the weights along
// the columns, address of the result (height_out x width_out x 3).
extern "C" __global__ void resize_rows(const long long *images, int width_out)
{
    const long long *image = images + 9LL * blockIdx.z;
    const uint8 *pixels = (const uint8 *)image[0];
    const long long pitch = image[1];
    const int height = image[2], taps = image[3];
    const int *first = (const int *)image[4], *count = first + width_out, *weights = count + width_out;
    uint8 *between = (uint8 *)image[5];
    for (int y = FIRST(y); y < height; y += STEP(y))
        for (int x = FIRST(x); x < width_out; x += STEP(x)) {
            const uint8 *source = pixels + y * pitch + 3LL * first[x];
            const int *weight = weights + (long long)x * taps;
            int red = 1 << 21, green = 1 << 21, blue = 1 << 21;
            for (int i = 0; i < count[x]; i++, source += 3) {
                red += source[0] * weight[i];
                green += source[1] * weight[i];
                blue += source[2] * weight[i];
            }
            uint8 *target = between + ((long long)y * width_out + x) * 3;
            target[0] = clipped(red);
            target[1] = clipped(green);
            target[2] = clipped(blue);
        }
}

extern "C" __global__ void resize_columns(const long long *images, int width_out, int height_out)
{
    const long long *image = images + 9LL * blockIdx.z;
    const uint8 *between = (const uint8 *)image[5];
    const int taps = image[6], row = 3 * width_out;
    const int *first = (const int *)image[7], *count = first + height_out, *weights = count + height_out;
    uint8 *result = (uint8 *)image[8];
    for (int y = FIRST(y); y < height_out; y += STEP(y))
        for (int x = FIRST(x); x < row; x += STEP(x)) {
            const uint8 *source = between + (long long)first[y] * row + x;
            const int *weight = weights + (long long)y * taps;
            int sum = 1 << 21;
            for (int i = 0; i < count[y]; i++) sum += source[(long long)i * row] * weight[i];
            result[(long long)y * row + x] = clipped(sum);
        }
}

// OpenCV, imgproc/resize.cpp: INTER_LINEAR of 8-bit pixels; neighbours and their weights (2^-11) of one output pixel.
// At the left and right border OpenCV gives all the weight to one pixel; at the upper and lower one it takes the same
// row twice, each with its own weight, which rounds differently.
__device__ inline void linear(
    int out, double scale, int size, bool is_row, int &low, int &high, int &at_low, int &at_high)
{
    float fraction = (float)((out + 0.5) * scale - 0.5);
    low = (int)floorf(fraction);
    fraction -= low;
    if (!is_row && (low < 0 || low >= size - 1)) fraction = 0.0f;
    high = low + 1 < size ? low + 1 : size - 1;
    if (high < 0) high = 0;
    if (low < 0) low = 0;
    if (low >= size) low = size - 1;
    at_low = (int)rintf((1.0f - fraction) * 2048.0f);
    at_high = (int)rintf(fraction * 2048.0f);
}

// A row of `masks`: address of the probability map (h x w), height and width of the mask, its address. 1 bit a pixel,
// the first one highest, rows of whole bytes. The scales are divided as OpenCV does it.
extern "C" __global__ void restore_mask(const long long *masks, int h, int w, int cutoff)
{
    const long long *mask = masks + 4LL * blockIdx.z;
    const uint8 *probability = (const uint8 *)mask[0];
    const int height = mask[1], width = mask[2];
    const int row_bytes = (width + 7) / 8;
    const double scale_y = 1.0 / ((double)height / h), scale_x = 1.0 / ((double)width / w);
    uint8 *packed = (uint8 *)mask[3];
    for (int y = FIRST(y); y < height; y += STEP(y)) {
        int top, bottom, at_top, at_bottom;
        linear(y, scale_y, h, true, top, bottom, at_top, at_bottom);
        const uint8 *above = probability + (long long)top * w, *below = probability + (long long)bottom * w;
        for (int byte = FIRST(x); byte < row_bytes; byte += STEP(x)) {
            int bits = 0;
            for (int bit = 0; bit < 8; bit++) {
                const int x = byte * 8 + bit;
                bits <<= 1;
                if (x >= width) continue;
                int left, right, at_left, at_right;
                linear(x, scale_x, w, false, left, right, at_left, at_right);
                const int upper = above[left] * at_left + above[right] * at_right;
                const int lower = below[left] * at_left + below[right] * at_right;
                const int level = (((at_top * (upper >> 4)) >> 16) + ((at_bottom * (lower >> 4)) >> 16) + 2) >> 2;
                bits |= level >= cutoff;
            }
            packed[(long long)y * row_bytes + byte] = (uint8)bits;
        }
    }
}
"""

NAMES = {"triangle_weights": "P", "resize_rows": "Pi", "resize_columns": "Pii", "restore_mask": "Piii"}
"""Kernels and the types of their arguments, in the letters of `struct`."""
OPTIONS: tuple[str, ...] = ("--fmad=false", "-O3")
_MOST_BLOCKS = (64, 128)
"""Of an image, (x, y). Where images of all sizes share a launch, blocks of the small ones find nothing to do, and must
not be many."""
Grid = tuple[int, int, int]
"""Blocks, (x, y), and layers: images, or axes of weights."""


def taps(size_in: int, size_out: int) -> int:
    """Input pixels that one output pixel may need, as Pillow counts them."""
    support = max(1.0, size_in / size_out)
    return int(-(-support // 1)) * 2 + 1


class Kernels:
    """The kernels on a GPU. The driver compiles them from the PTX that isicrt brings; if it is too old for that, nvcc
    does, through PyCUDA, which keeps the result in the user's cache.

    Args:
        device: whose context is current.

    Raises:
        ModelError: neither works.
    """

    def __init__(self, device: CudaDevice) -> None:
        module = _load(device)
        self._functions = {name: module.get_function(name).prepare(types) for name, types in NAMES.items()}

    def launch(self, name: str, grid: Grid, block: tuple[int, int], stream: Any, *arguments: Any) -> None:
        """Queue a kernel; `block` is (x, y)."""
        self._functions[name].prepared_async_call(grid, (*block, 1), stream, *arguments)


def cover(width: int, height: int, layers: int, block: tuple[int, int]) -> Grid:
    """Blocks that cover that many threads in each layer; the kernels go round again where the grid ends earlier."""
    x, y = (min(most, -(-side // of)) for most, side, of in zip(_MOST_BLOCKS, (width, height), block, strict=True))
    return x, y, layers


def _load(device: CudaDevice) -> Any:
    """A module with the kernels; the functions that it gives keep it."""
    refusal = "the PTX is not that of this source"
    if (ptx := read_ptx(SOURCE, OPTIONS)) is not None:
        try:
            return device.cuda.module_from_buffer(ptx)
        except device.cuda.Error as error:
            refusal = f"the driver refuses the PTX ({error})"
    try:
        import pycuda.compiler

        return pycuda.compiler.SourceModule(SOURCE, options=list(OPTIONS), no_extern_c=True).module
    except (ImportError, OSError, device.cuda.Error) as error:
        raise ModelError(
            f"the GPU's kernels cannot be compiled: {refusal}, and nvcc of the CUDA toolkit fails: {error}. Install a "
            "newer driver, or put nvcc on the PATH; --decode cpu works without them."
        ) from error
