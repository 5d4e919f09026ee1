"""From a person and a shot to a crop."""

import numpy as np
from PIL import Image, ImageFilter

from vireid_lite.data.synthetic.figure import SPECTRA, Figure, Person, Shot
from vireid_lite.data.synthetic.paint import BAG, DARK, HAIR, MATERIALS, SHOES, SKIN
from vireid_lite.data.synthetic.scene import folds

# Skin, hair, eyes and bags do not wrinkle as cloth does.
ROUGHNESS = np.ones(2 * len(MATERIALS), np.float32)

for _smooth in (SKIN, HAIR, DARK, BAG, SHOES):
    ROUGHNESS[_smooth : _smooth + 2] = 0.25


def render(
    person: Person, shot: Shot, scene: np.ndarray, cast: np.ndarray, spectrum: str, size: tuple[int, int]
) -> np.ndarray:
    """Return one crop as uint8 (height, width, 3); both infrared spectra as three equal channels.

    Args:
        scene: (3 or 1, rows, columns) panorama from `draw_scene` for this height.
        cast: (3,) the camera's white balance.
    """
    height, width = size
    sub = 2 if height >= 96 else -(-192 // height)
    canvas = Figure(person, shot, height * sub, width * sub, spectrum == "thermal").draw()
    table = (person.visible.T, person.infrared[None], person.heat[None])[SPECTRA.index(spectrum)]
    shade, index = canvas.shade, canvas.index.astype(np.intp)
    if spectrum != "thermal":
        shade = shade * (1 + ROUGHNESS[index] * folds(*shade.shape, shot.folds))
    covered = shrink((canvas.index > 0).astype(np.float32), sub)
    top = int(shot.pan[1] * (scene.shape[1] - height))
    left = int(shot.pan[0] * (scene.shape[2] - width))
    backdrop = scene[:, top : top + height, left : left + width]
    if shot.mirror:
        backdrop = backdrop[:, :, ::-1]
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height
    x = (np.arange(width, dtype=np.float32) + 0.5 - width / 2) / height
    ground = np.float32(shot.scene_exposure) * (1 - covered)
    if spectrum == "visible":
        # The soft shadow under the feet.
        ground *= 1 - 0.5 * np.exp(-(((y - shot.foot) / 0.025) ** 2) - ((x - shot.shift) / 0.11) ** 2)
    lit = shot.exposure * np.exp(-(((y - shot.hotspot[0]) ** 2 + (x - shot.hotspot[1]) ** 2) * shot.hotspot[2]))
    planes = np.empty((len(table), height, width), np.float32)
    for plane, values, behind, gain in zip(planes, table, backdrop, cast, strict=False):
        np.multiply(shrink(values[index] * shade, sub) + behind * ground, lit * gain, out=plane)
    if shot.occluder is not None:
        left, crest, half, level, ragged = shot.occluder
        grain = folds(height, width, shot.folds)
        u = (x - left) / half + 5 * ragged * grain
        inside = (np.abs(u) < 1) & (y + ragged * grain > crest)
        np.copyto(planes, level * (1 - 0.6 * np.minimum(u * u, 1)) * (1 + (0.2 + 2 * ragged) * grain), where=inside)
    np.sqrt(np.clip(planes, 0.0, 1.0, out=planes), out=planes)
    planes *= 255
    pixels = planes.astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)) if len(pixels) == 3 else pixels[0])
    blur = (shot.blur + (1.0 if spectrum == "thermal" else 0.0)) * height / 128
    if blur > 0.15:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    pixels = np.asarray(image, np.float32)
    noise = np.random.Generator(np.random.SFC64(shot.noise_seed)).standard_normal(pixels.shape, np.float32)
    noise *= 255 * shot.noise * (0.6 if spectrum == "thermal" else 1.0)
    noise += pixels
    pixels = np.clip(noise + 0.5, 0, 255, out=noise).astype(np.uint8)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Average factor x factor pixels into one."""
    rows = sum(image[i::factor] for i in range(factor))
    return sum(rows[:, i::factor] for i in range(factor)) * np.float32(1 / factor**2)
