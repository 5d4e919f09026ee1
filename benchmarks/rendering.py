"""Time the renderer on one thread against decoding and resizing a JPEG of the same crop.

    python benchmarks/rendering.py

A stored data set costs at least that decoding (here from memory, without the disk), so the ratio says what rendering on
the fly adds to it. Both spectra are averaged; scenes are drawn before the clock starts.
"""

import io
import time

import numpy as np
from PIL import Image

from vireid_lite.data.synthetic.people import DIFFICULTIES, SyntheticVI


def rate(work, items: list, repeats: int = 3) -> float:
    """Return items per second of processor time, the best of `repeats` passes."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        for item in items:
            work(item)
        times.append(time.process_time() - start)
    return len(items) / min(times)


def decode(stored: bytes, size: tuple[int, int]) -> np.ndarray:
    """Decode a JPEG and resize it to (height, width) as the readers of real data do."""
    with Image.open(io.BytesIO(stored)) as image:
        return np.asarray(image.convert("RGB").resize((size[1], size[0]), Image.Resampling.LANCZOS))


def jpeg(pixels: np.ndarray) -> bytes:
    """Return the crop stored at 288 x 144, as the official code prepares its data, in quality 90."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((144, 288)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def main() -> None:
    for size in ((128, 64), (256, 128)):
        for difficulty in DIFFICULTIES:
            data = SyntheticVI(40, 3, size=size, difficulty=difficulty)
            stored = [jpeg(data.read(record)) for record in data.train]
            rendered = rate(data.read, data.train)
            decoded = rate(lambda item, size=size: decode(item, size), stored)
            print(
                f"{size[0]}x{size[1]} {difficulty}: {rendered:.0f} crops/s on one core, "
                f"{rendered / decoded:.2f} times the rate of decoding a JPEG ({decoded:.0f}/s)"
            )


if __name__ == "__main__":
    main()
