"""Backgrounds, and the folds of cloth."""

import math
from functools import lru_cache

import numpy as np
from PIL import Image, ImageFilter


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float, wide: float = 0) -> np.ndarray:
    """Return smooth noise in [0, 1], (height, width), with features `cell` pixels tall and `wide` (or as) wide."""
    rows, columns = max(2, round(height / cell)), max(2, round(width / (wide or cell)))
    coarse = Image.fromarray((rng.random((rows, columns)) * 255).astype(np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255


def draw_scene(rng: np.random.Generator, kind: str, spectrum: str, height: int, clutter: float) -> np.ndarray:
    """Return one camera's panorama, float32 linear light (3 or 1, 1.2 height, 6 height), wider than any crop.

    Args:
        kind: "corridor", "hall", "street" or "garden".
        spectrum: one of SPECTRA.
        height: of the crop, in pixels.
        clutter: 0 (bare) to 1 (busy).
    """
    rows, columns = math.ceil(1.2 * height), 6 * height
    channels = 3 if spectrum == "visible" else 1
    y = (np.arange(rows, dtype=np.float32)[:, None] + 0.5) / height
    x = (np.arange(columns, dtype=np.float32) + 0.5) / height

    def tone(low: float, high: float, tint: float = 0.07, heat: float = 0.12) -> np.ndarray:
        if spectrum == "thermal":
            return np.array([heat + 0.1 * rng.random()], np.float32)
        level = rng.uniform(low, high)
        if spectrum == "near infrared":
            return np.array([rng.uniform(0.5, 1.5) * level], np.float32)
        return np.clip(level * (1 + tint * rng.uniform(-1, 1, 3)), 0, 1).astype(np.float32)

    def leaf() -> np.ndarray:
        # Foliage: dark green to the eye, bright beyond 700 nm, at air temperature.
        values = {"visible": (0.05, 0.13, 0.03), "near infrared": (0.55,), "thermal": (0.12,)}
        return np.array(values[spectrum], np.float32) * rng.uniform(0.7, 1.3)

    outdoor = kind in ("street", "garden")
    foot = rng.uniform(0.62, 0.78)
    horizon = foot - rng.uniform(0.3, 0.5)
    wall = tone(0.6, 0.9, 0.08) if kind == "garden" else tone(0.25, 0.6)
    image = np.ones((rows, columns, channels), np.float32) * wall * (1.1 - 0.35 * y)[..., None]
    image *= 0.85 + 0.3 * smooth_noise(rng, rows, columns, height * 0.35)[..., None]

    def box(left: float, top: float, width: float, tall: float, colour: np.ndarray, relief: float = 0.0) -> None:
        y0, y1, x0, x1 = (max(0, round(edge * height)) for edge in (top, top + tall, left, left + width))
        area = np.s_[y0:y1, x0:x1]
        across = np.linspace(-1, 1, image[area].shape[1], dtype=np.float32)
        image[area] = colour * (1 - relief * across**2 + 0.3 * relief * across)[None, :, None]

    if kind == "street":
        brick = rng.uniform(0.03, 0.05)
        course = np.floor(y / brick)
        joint = ((y / brick) % 1 < 0.18) | (((x / (2.2 * brick)) + 0.5 * (course % 2)) % 1 < 0.08)
        image *= np.where(joint, 0.75, 1.0)[..., None]
    if kind == "garden":
        fine = smooth_noise(rng, rows, columns, height * 0.02)
        leaves = 0.6 * smooth_noise(rng, rows, columns, height * 0.05) + 0.4 * fine
        crown = smooth_noise(rng, rows, columns, height * 0.4)[..., None]
        image = np.where(crown > 0.42, leaf() * (0.35 + 1.5 * leaves**2)[..., None], image)

    left = rng.uniform(0, 0.3)
    while left < 6:
        width = rng.uniform(0.25, 0.6)
        choice = rng.random()
        if kind == "corridor" and choice < 0.6:
            frame, door = tone(0.1, 0.5), tone(0.08, 0.6, 0.3)
            box(left, foot - 0.62, width, 0.62, frame)
            box(left + 0.03, foot - 0.59, width - 0.06, 0.59, door, 0.15)
            box(left + width - 0.09, foot - 0.3, 0.04, 0.015, tone(0.6, 0.9))
        elif kind == "hall" and choice < 0.55:
            box(left, -0.1, 0.18 * (1 + width), foot + 0.1, tone(0.3, 0.7), 0.55)
        elif kind in ("hall", "street") and choice < 0.85:
            pane = tone(0.5, 1.0, 0.15) if kind == "hall" else tone(0.04, 0.2, 0.3, 0.2)
            box(left, foot - 0.7, width, 0.45, tone(0.2, 0.5))
            for half in (0, 1):
                x0, bright = left + 0.02 + half * width / 2, rng.uniform(0.7, 1.1)
                box(x0, foot - 0.68, width / 2 - 0.03, 0.41, pane * bright, 0.2)
        elif kind == "garden" and choice < 0.5:
            box(left, -0.1, 0.05 + 0.1 * width, foot + 0.1, tone(0.05, 0.15, 0.2), 0.6)
        left += width + rng.uniform(0.15, 0.7)

    # The floor in perspective: depth grows as 1 / (row - horizon), so tiles shrink and converge.
    depth = 0.35 / np.maximum(y - horizon, 0.02)
    floor = np.ones((rows, columns, channels), np.float32) * tone(0.12, 0.45)
    across, away = (x - 3.0) * depth, depth * 2.2
    tile = rng.uniform(0.22, 0.45)
    if outdoor:
        grain = 0.75 + 0.5 * smooth_noise(rng, rows, columns, height * 0.03)
        if kind == "garden":
            grain *= np.where(smooth_noise(rng, rows, columns, height * 0.5) > 0.5, 1.0, 0.8)
        else:
            grain *= np.where(np.abs(away % 2.0 - 1) < 0.07, 1.7, 1.0)
        floor *= grain[..., None]
    else:
        joint = ((across / tile) % 1 < 0.06) | ((away / tile) % 1 < 0.08)
        parity = (np.floor(across / tile) + np.floor(away / tile)) % 2
        shine = 1 + 0.5 * np.exp(-(((y - foot - 0.08) / 0.12) ** 2))
        floor *= (np.where(joint, 0.7, 1.0) * (1 - 0.12 * rng.random() * parity) * shine)[..., None]
    box(0, foot - 0.025, 6, 0.025, tone(0.05, 0.4))
    image = np.where((y > foot)[..., None], floor * (0.75 + 0.45 * (y - foot))[..., None], image)

    for _ in range(round(clutter * 26)):
        left, tall, width = rng.uniform(0, 5.8), rng.uniform(0.08, 0.4), rng.uniform(0.05, 0.28)
        if rng.random() < 0.45:
            box(left, foot - tall + rng.uniform(0.0, 0.2), width, tall, tone(0.03, 0.7, 0.5), 0.4)
        elif rng.random() < 0.5:
            top = rng.uniform(0.02, foot - 0.2)
            box(left, top, width, 0.8 * tall, tone(0.1, 0.9, 0.5))
            box(left + 0.02, top + 0.02, max(width - 0.04, 0.01), 0.25 * tall, tone(0.1, 0.9, 0.5))
        else:
            shape = smooth_noise(rng, rows, columns, height * 0.04)
            bush = ((x - left) / width) ** 2 + ((y - foot + 0.05) / (0.8 * tall)) ** 2 + 0.8 * (shape - 0.5) < 1
            image = np.where(bush[..., None], leaf() * (0.4 + 1.3 * shape**2)[..., None], image)
    if spectrum == "near infrared":
        # Active illumination: it reaches the near floor and fades with distance, walls least.
        image *= np.clip(0.42 + 0.7 * (y - foot), 0.3, 0.9)[..., None]
    image = np.sqrt(np.clip(image, 0, 1)) * 255
    soften = ImageFilter.GaussianBlur(height / 128 * (0.9 if spectrum != "thermal" else 3.0))
    planes = [Image.fromarray(image[..., c].astype(np.uint8)).filter(soften) for c in range(channels)]
    return (np.stack([np.asarray(plane, np.float32) for plane in planes]) / 255) ** 2


@lru_cache(maxsize=4)
def wrinkles(height: int) -> np.ndarray:
    """Return a field about 0, twice `height` on a side, that every garment takes a piece of."""
    rng, side = np.random.default_rng(7), 2 * height
    coarse = smooth_noise(rng, side, side, height * 0.13, height * 0.05)
    fine = smooth_noise(rng, side, side, height * 0.05, height * 0.02)
    return 0.34 * coarse + 0.16 * fine - 0.25


def folds(height: int, width: int, offset: tuple[float, float]) -> np.ndarray:
    """Return the (height, width) piece of the wrinkles that starts at `offset`, in [0, 1]; wider pictures repeat it."""
    field = wrinkles(height)
    if width > height:
        field = np.tile(field, (1, -(-width // height)))
    y, x = int(offset[0] * height), int(offset[1] * height)
    return field[y : y + height, x : x + width]
