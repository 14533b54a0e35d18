"""Draw the example images: python examples/render_images.py [FOLDER]

They are rendered by `isicrt.benchmarks.rendered`, not photographed: nobody's skin is in this repository.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image

from isicrt.benchmarks.rendered import render

# seed -> (height, width) in pixels: the commonest size of ISIC 2016, and a larger 3:2 frame.
SIZES = {
    12: (767, 1022),
    16: (767, 1022),
    8: (767, 1022),
    23: (767, 1022),
    10: (1200, 1800),
}


def write_examples(folder: Path) -> list[Path]:
    """Write one JPEG for each of `SIZES`; the mask that `render` also draws is not kept."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, (seed, size) in enumerate(SIZES.items(), start=1):
        path = folder / f"rendered-{number}.jpg"
        Image.fromarray(render(seed, size)[0]).save(path, quality=80, optimize=True)
        written.append(path)
    return written


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).resolve().parent / "images"
    for image in write_examples(target):
        print(f"{image} {image.stat().st_size / 1000:.0f} kB")
