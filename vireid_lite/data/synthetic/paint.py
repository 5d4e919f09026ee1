"""What people are painted with: materials and their dyes, and a canvas of material numbers and shades."""

import colorsys
import math
from collections.abc import Callable

import numpy as np

MATERIALS = ("nothing", "skin", "hair", "upper", "inner", "lower", "shoes", "bag", "hat", "dark", "scarf")
# A material owns two numbers: its first dye and its second (the pattern).
SKIN, HAIR, UPPER, INNER, LOWER, SHOES, BAG, HAT, DARK, SCARF = range(2, 2 * len(MATERIALS), 2)
# Colour, near-infrared reflectance, share.
HAIR_COLOURS = (
    *(((0.07, 0.06, 0.05), 0.03, 0.38), ((0.22, 0.14, 0.09), 0.1, 0.24), ((0.45, 0.28, 0.15), 0.2, 0.14)),
    *(((0.8, 0.66, 0.42), 0.35, 0.1), ((0.62, 0.62, 0.62), 0.4, 0.08), ((0.5, 0.2, 0.1), 0.25, 0.06)),
)


def dyes(rng: np.random.Generator, similarity: float, pattern_loss: float, shift: float, upper: str) -> tuple:
    """Draw colour (22, 3), near-infrared reflectance (22,) and heat (22,) of every dye of every material."""
    visible, infrared, heat = (np.zeros((2 * len(MATERIALS), *channels)) for channels in ((3,), (), ()))

    def colour() -> np.ndarray:
        # Street clothes: greys, navy and denim, earth tones, and now and then a strong colour.
        kind = rng.random()
        if kind < 0.35:
            grey = rng.choice((0.14, 0.3, 0.55, 0.9)) + rng.uniform(-0.06, 0.06)
            return grey * rng.uniform(0.95, 1.05, 3)
        hue, saturation, value = rng.random(), rng.uniform(0.5, 0.9), rng.uniform(0.35, 0.95)
        if kind < 0.6:
            hue, saturation, value = rng.normal(0.61, 0.03), rng.uniform(0.3, 0.75), rng.uniform(0.2, 0.65)
        elif kind < 0.78:
            hue, saturation, value = rng.normal(0.08, 0.03) % 1, rng.uniform(0.2, 0.55), rng.uniform(0.3, 0.85)
        return np.array(colorsys.hsv_to_rgb(hue, saturation, value))

    for material in (UPPER, INNER, LOWER, SHOES, BAG, HAT, SCARF):
        first, second = colour(), colour()
        if abs(first.mean() - second.mean()) < 0.2:
            second = np.clip(second + (0.4 if first.mean() < 0.5 else -0.35), 0.05, 0.95)
        # Dyes absorb in the visible and are mostly clear beyond 700 nm, so reflectance there is the fibre's own.
        fibre = rng.uniform(0.12, 0.95, 2)
        if abs(fibre[0] - fibre[1]) < 0.25:
            fibre[1] = (fibre[0] + rng.uniform(0.3, 0.55)) % 0.9 + 0.06
        if rng.random() < pattern_loss:
            fibre[1] = fibre[0]
        middle = np.array([0.45, 0.45, 0.5])
        for dye, rgb in enumerate((first, second)):
            rgb = middle + (rgb - middle) * (1 - 0.7 * similarity)
            visible[material + dye] = np.clip(rgb, 0.03, 0.97) ** 2
            level = (1 - shift) * rgb.mean() + shift * fibre[dye]
            infrared[material + dye] = np.clip(0.5 + (level - 0.5) * (1 - 0.6 * similarity), 0.1, 0.95) ** 1.6
        heat[material : material + 2] = rng.uniform(0.32, 0.72)
    tan = rng.beta(1.3, 1.8)
    visible[SKIN] = (np.array([0.92, 0.74, 0.62]) * (1 - tan) + np.array([0.36, 0.22, 0.15]) * tan) ** 2
    visible[SKIN + 1] = visible[SKIN] * (0.75, 0.45, 0.45)
    infrared[SKIN], infrared[SKIN + 1] = rng.uniform(0.42, 0.55), 0.38
    rgb, level, _ = HAIR_COLOURS[rng.choice(len(HAIR_COLOURS), p=[share for *_, share in HAIR_COLOURS])]
    visible[HAIR] = visible[HAIR + 1] = np.array(rgb) ** 2
    infrared[HAIR] = infrared[HAIR + 1] = level + rng.uniform(0, 0.1)
    visible[DARK] = visible[DARK + 1] = 0.01
    infrared[DARK] = infrared[DARK + 1] = 0.05
    for material, warmth in {SKIN: 0.95, HAIR: 0.62, DARK: 0.85}.items():
        heat[material : material + 2] = warmth
    heat[BAG : BAG + 2] = rng.uniform(0.15, 0.3)
    heat[SHOES : SHOES + 2] *= 0.75
    # A coat keeps its warmth inside.
    heat[UPPER : UPPER + 2] *= {"coat": 0.7, "jacket": 0.8, "hoodie": 0.85}.get(upper, 1.0)
    return visible.astype(np.float32), infrared.astype(np.float32), (heat**1.5).astype(np.float32)


Point = tuple[float, float]
Paint = int | Callable[[np.ndarray, np.ndarray], np.ndarray]


class Canvas:
    """A supersampled picture of material numbers and shades that tubes and columns are painted on, back to front."""

    def __init__(self, height: int, width: int, light: tuple[float, float, float], ambient: float) -> None:
        self.index = np.zeros((height, width), np.uint8)
        self.shade = np.zeros((height, width), np.float32)
        self.x = np.arange(width, dtype=np.float32) + 0.5
        self.y = np.arange(height, dtype=np.float32)[:, None] + 0.5
        self.light, self.ambient = light, ambient

    def _window(self, x0: float, x1: float, y0: float, y1: float) -> tuple[slice, slice]:
        return tuple(slice(max(0, int(low)), max(0, int(high) + 2)) for low, high in ((y0, y1), (x0, x1)))

    def _put(self, window, inside, u, v, slope: tuple[float, float], paint: Paint, gain) -> None:
        toward = np.sqrt(np.maximum(1.0 - u * u, 0.0))
        shade = u * (slope[0] * self.light[0] + slope[1] * self.light[1]) + toward * self.light[2]
        shade = (np.maximum(shade, 0.0, out=shade) + self.ambient) * gain
        np.copyto(self.shade[window], shade, where=inside)
        np.copyto(self.index[window], paint if isinstance(paint, int) else paint(u, v), where=inside, casting="unsafe")

    def _limb(self, a: Point, b: Point, start: float, end: float, reach: float) -> tuple:
        """Return window, across / radius, squared distance / radius (both 1 on the outline) and the way along."""
        (ax, ay), (bx, by) = a, b
        length, reach = math.hypot(bx - ax, by - ay) + 1e-3, max(start, end) * reach + 1
        dx, dy = (bx - ax) / length, (by - ay) / length
        window = self._window(min(ax, bx) - reach, max(ax, bx) + reach, min(ay, by) - reach, max(ay, by) + reach)
        x, y = self.x[window[1]] - ax, self.y[window[0]] - ay
        along = x * dx + y * dy
        clipped = np.minimum(np.maximum(along, 0.0), length)
        radius = clipped * ((end - start) / length) + start
        u = (x * -dy + y * dx) / radius
        beyond = (along - clipped) / radius
        return window, u, u * u + beyond * beyond, clipped / length, (-dy, dx)

    def tube(self, a: Point, b: Point, start: float, end: float, paint: Paint, gain: float = 1.0) -> None:
        """Paint a round-ended limb from a to b (x, y in pixels) whose radius goes from `start` to `end` pixels."""
        window, u, square, v, slope = self._limb(a, b, start, end, 1.0)
        self._put(window, square < 1.0, u, v, slope, paint, gain)

    def contact(self, a: Point, b: Point, start: float, end: float, strength: float) -> None:
        """Darken what lies behind a limb that is about to be painted, most at its outline."""
        window, _, square, _, _ = self._limb(a, b, start, end, 1.5)
        self.shade[window] *= np.clip(square * (strength / 1.25) + (1 - 1.8 * strength), 1 - strength, 1.0)

    def column(self, y, centre, half, paint: Paint, gain: float = 1.0, contact: float = 0.0, tilt: float = 0.0) -> None:
        """Paint an upright solid by its knots in pixels: rows, centre line, half widths; tilt: brighter to the top."""
        reach = max(half) * 1.3 + 1
        window = self._window(min(centre) - reach, max(centre) + reach, y[0], y[-1])
        rows = self.y[window[0], 0]
        self._rows(window, rows, np.interp(rows, y, centre), np.interp(rows, y, half), y, paint, gain, contact, tilt)

    def ellipse(
        self, x, y, half_width, half_height, paint: Paint, gain=1.0, contact=0.0, tilt=0.0, power=2.0, taper=0.0
    ):
        """Paint a superellipse about (x, y) in pixels: a power over 2 is a rounded box; taper narrows its foot."""
        window = self._window(x - half_width * 1.3 - 1, x + half_width * 1.3 + 1, y - half_height, y + half_height)
        rows = self.y[window[0], 0]
        height = np.minimum(np.abs(rows - y) / half_height, 1.0)
        half = half_width * (1.0 - height**power) ** (1 / power) * (1 - taper * np.clip((rows - y) / half_height, 0, 1))
        self._rows(window, rows, x, half, (y - half_height, y + half_height), paint, gain, contact, tilt)

    def _rows(self, window, rows, centre, half, y, paint, gain, contact, tilt) -> None:
        half = np.maximum(half, 1e-3).astype(np.float32)[:, None]
        centre = centre[:, None].astype(np.float32) if isinstance(centre, np.ndarray) else np.float32(centre)
        u = (self.x[window[1]] - centre) / half
        v = ((rows - y[0]) / (y[-1] - y[0]))[:, None].astype(np.float32)
        # Outside the rows of the solid nothing is painted.
        inside = (np.abs(u) < 1.0) & (v >= 0) & (v <= 1)
        if contact:
            shadow = np.minimum(np.abs(u) * (contact * 4) + (1 - contact * 5), 1.0)
            self.shade[window] *= np.maximum(shadow, 1 - contact)
        self._put(window, inside, u, v, (1.0, 0.0), paint, gain * (1 + tilt * (0.5 - v)))
