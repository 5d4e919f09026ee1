"""Things to move on a page: what stands there where scripts are off, which a module of the book then takes up."""

import io
import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

from vireid_lite.data import Modality, SyntheticVI
from vireid_lite.data.synthetic.people import draw_person
from vireid_lite.data.synthetic.render import render

MARK = re.compile(r"<!-- move: (tiles|floor|spectrum) -->")  # which Colab does not show
SPRITE = "book/_static/move/spectrum.webp"
SIZE = (384, 192)
LAMP = {"light": (0.0, 0.0, 0.85), "ambient": 0.15, "hotspot": (0.45, 0.0, 1.0)}  # as of the set's infrared cameras
DIM = {**LAMP, "noise": 0.03}
GREY = (0.299, 0.587, 0.114)
# Of each step that spectrum.html tells of: the spectrum, the knob reflectance_shift, what else the shot has; a mean of
# red, green and blue.
STEPS = (
    ("visible", 0.6, {}),
    *(("visible", 0.6, {}, weights) for weights in (GREY, (0, 0, 1), (0, 1, 0), (1, 0, 0))),
    *(("near infrared", shift, {}) for shift in (0.0, 0.3, 0.6)),
    *(("near infrared", 0.6, {**way, "exposure": light}) for way, light in ((LAMP, 1.2), (DIM, 0.3), (DIM, 0.0))),
    ("thermal", 0.6, {}),
)


def in_chapters(text: str) -> str:
    """Return a staged notebook with what can be moved where its comments ask for it."""

    def here(found: re.Match) -> str:
        html = (Path(__file__).parent / f"{found[1]}.html").read_text(encoding="utf-8").strip()
        style = '<link rel="stylesheet" href="../_static/move/move.css">'
        script = f'<script type="module" src="../_static/move/{found[1]}.js"></script>'
        return json.dumps(html.removesuffix("</div>") + f"{style}{script}</div>")[1:-1]

    return MARK.sub(here, text)


def picture(spectrum: str, shift: float, other: dict, weights: tuple[float, ...] = ()) -> np.ndarray:
    """Return the first test person of chapter 1's five at seed 0, before a wall, as uint8 (384, 192, 3)."""
    data = SyntheticVI(2, 1, size=SIZE, occlusion=0, noise=0.01, blur=0.3)
    record = next(record for record in data.test if record.modality == Modality.VISIBLE)
    knobs = data.knobs
    person = draw_person(data.seed, record.identity, knobs.similarity, knobs.pattern_loss, shift)
    wall = np.full((3 if spectrum == "visible" else 1, *[2 * SIZE[0]] * 2), 0.15, np.float32)
    image = render(person, data.shot(record)._replace(**other), wall, np.ones(3), spectrum, SIZE)
    return np.repeat((image @ weights).astype(np.uint8)[..., None], 3, axis=2) if weights else image


def sprite() -> bytes:
    """Return the pictures of all steps, six in a row, as WebP."""
    stream, pictures = io.BytesIO(), [picture(*step) for step in STEPS]
    rows = [np.concatenate(pictures[first : first + 6], axis=1) for first in (0, 6)]
    Image.fromarray(np.concatenate(rows)).save(stream, "webp", quality=80)
    return stream.getvalue()
