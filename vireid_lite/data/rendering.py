"""Draw one pedestrian crop in the visible, the near infrared or the thermal band: everything here is deterministic.

A person is a skeleton dressed in tubes and columns, projected orthographically at a yaw. Every pixel of a supersampled
canvas gets a *material and dye* number and a shade; a table then turns numbers into colour, reflectance or heat, so
one drawing serves three spectra. Lengths of the body are in units of its stature (y from the crown down), lengths of
the image in units of its height. Light is linear until the camera's square-root response.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

SPECTRA = ("visible", "near infrared", "thermal")
MATERIALS = ("nothing", "skin", "hair", "upper", "inner", "lower", "shoes", "bag", "hat", "dark", "scarf")
# A material owns two numbers: its first dye and its second (the pattern).
SKIN, HAIR, UPPER, INNER, LOWER, SHOES, BAG, HAT, DARK, SCARF = range(2, 2 * len(MATERIALS), 2)

HAIR_STYLES = ("bald", "short", "bob", "long", "ponytail", "bun", "afro")
HATS = ("none", "cap", "beanie", "brimmed", "hood")
UPPERS = ("tee", "vest", "shirt", "jacket", "coat", "dress", "hoodie")
LOWERS = ("trousers", "wide trousers", "shorts", "skirt", "long skirt")
BAGS = ("none", "backpack", "shoulder bag", "handbag")
PATTERNS = ("plain", "hoops", "stripes", "checks", "yoke", "band", "halves", "print", "sash", "sides", "dots")
LEG_PATTERNS = ("plain", "side stripe", "knees", "checks", "cuffs", "stripes")
ARM_POSES = ("swing", "phone", "pocket")


@dataclass(frozen=True, slots=True)
class Person:
    """What one identity carries from image to image, in both spectra.

    Lengths are in units of the stature; `visible` is (22, 3) linear RGB, `infrared` (22,) near-infrared reflectance and
    `heat` (22,) temperature from 0 (ambient) to 1 (skin), one row for each dye of each material.
    """

    stature: float
    shoulder: float
    waist: float
    hip: float
    depth: float
    arm: float
    leg: float
    crotch: float
    head: float
    hair: str
    beard: bool
    hat: str
    upper: str
    hem: float
    sleeve: float
    sleeve_dye: int
    opening: float
    pattern: str
    repeats: float
    phase: float
    pattern_back: bool
    lower: str
    lower_hem: float
    leg_pattern: str
    boots: float
    bag: str
    bag_side: int
    bag_size: float
    scarf: bool
    visible: np.ndarray
    infrared: np.ndarray
    heat: np.ndarray


@dataclass(frozen=True, slots=True)
class Shot:
    """What one image draws for itself: pose, view, framing, light and the camera's faults.

    yaw in radians (0 faces the camera, pi/2 walks to the right); stride, swing, elbow, spread, lean in radians; scale,
    shift, foot, and the pan over the scene (x, y) in units of the image's height; exposure a factor; light (x, y,
    towards the camera); blur a standard deviation in pixels at 128 rows; noise a standard deviation on a scale of 1;
    occluder (x, top, width, level) in units of height, or None.
    """

    yaw: float
    phase: float
    stride: float
    swing: float
    elbow: tuple[float, float]
    arm_pose: tuple[str, str]
    spread: float
    lean: float
    head_turn: float
    scale: float
    stretch: float
    shift: float
    foot: float
    pan: tuple[float, float]
    mirror: bool
    exposure: float
    scene_exposure: float
    light: tuple[float, float, float]
    ambient: float
    hotspot: tuple[float, float, float]
    folds: tuple[int, int]
    blur: float
    noise: float
    noise_seed: int
    occluder: tuple[float, float, float, float] | None


Paint = int | Callable[[np.ndarray, np.ndarray], np.ndarray]


class Canvas:
    """A supersampled picture of material numbers and shades that tubes and columns are painted on, back to front."""

    def __init__(self, height: int, width: int, light: tuple[float, float, float], ambient: float) -> None:
        self.index = np.zeros((height, width), np.uint8)
        self.shade = np.zeros((height, width), np.float32)
        self.x = np.arange(width, dtype=np.float32) + 0.5
        self.y = np.arange(height, dtype=np.float32)[:, None] + 0.5
        self.light, self.ambient = light, ambient

    def _window(self, x0: float, x1: float, y0: float, y1: float) -> tuple[slice, slice] | None:
        height, width = self.index.shape
        rows = slice(max(0, int(y0)), min(height, int(y1) + 2))
        columns = slice(max(0, int(x0)), min(width, int(x1) + 2))
        return (rows, columns) if rows.start < rows.stop and columns.start < columns.stop else None

    def _put(self, window, inside, u, v, slope: tuple[float, float], paint: Paint, gain) -> None:
        toward = np.sqrt(np.maximum(1.0 - u * u, 0.0))
        shade = u * (slope[0] * self.light[0] + slope[1] * self.light[1])
        shade += toward * self.light[2]
        np.maximum(shade, 0.0, out=shade)
        shade += self.ambient
        shade *= gain
        np.copyto(self.shade[window], shade, where=inside)
        np.copyto(self.index[window], paint if isinstance(paint, int) else paint(u, v), where=inside, casting="unsafe")

    def tube(self, a, b, start: float, end: float, paint: Paint, gain: float = 1.0, contact: float = 0.0) -> None:
        """Paint a round-ended limb from a to b (x, y in pixels) whose radius goes from `start` to `end` pixels.

        contact: how much the limb darkens what lies behind it, just outside its outline.
        """
        (ax, ay), (bx, by) = a, b
        length = math.hypot(bx - ax, by - ay) + 1e-3
        dx, dy = (bx - ax) / length, (by - ay) / length
        reach = max(start, end) * (1.5 if contact else 1.0) + 1
        window = self._window(min(ax, bx) - reach, max(ax, bx) + reach, min(ay, by) - reach, max(ay, by) + reach)
        if window is None:
            return
        x, y = self.x[window[1]] - ax, self.y[window[0]] - ay
        along = x * dx + y * dy
        across = x * -dy + y * dx
        clipped = np.minimum(np.maximum(along, 0.0), length)
        radius = clipped * ((end - start) / length) + start
        beyond = (along - clipped) / radius
        u = across / radius
        square = u * u + beyond * beyond
        if contact:
            shadow = np.minimum(square * (contact / 1.25) + (1 - contact - contact / 1.25), 1.0)
            self.shade[window] *= np.maximum(shadow, 1 - contact)
        self._put(window, square < 1.0, u, clipped / length, (-dy, dx), paint, gain)

    def column(self, y, centre, half, paint: Paint, gain: float = 1.0, contact: float = 0.0, tilt: float = 0.0) -> None:
        """Paint an upright solid given by knots: rows y, centre line and half widths, all in pixels.

        tilt: how much brighter its top is than its foot, as a fraction.
        """
        reach = max(half) * 1.3 + 1
        window = self._window(min(centre) - reach, max(centre) + reach, y[0], y[-1])
        if window is None:
            return
        rows = self.y[window[0], 0]
        self._rows(window, rows, np.interp(rows, y, centre), np.interp(rows, y, half), y, paint, gain, contact, tilt)

    def ellipse(self, x, y, half_width, half_height, paint: Paint, gain=1.0, contact=0.0, tilt=0.0, power=2.0) -> None:
        """Paint a superellipse about (x, y) in pixels; power 2 is an ellipse, more is a rounded box."""
        window = self._window(x - half_width * 1.3 - 1, x + half_width * 1.3 + 1, y - half_height, y + half_height)
        if window is None:
            return
        rows = self.y[window[0], 0]
        height = np.minimum(np.abs(rows - y) / half_height, 1.0)
        half = half_width * (1.0 - height**power) ** (1 / power)
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


def pattern_mask(name: str, azimuth: np.ndarray, v: np.ndarray, person: Person) -> np.ndarray | bool:
    """Return where the second dye shows on a torso: azimuth in radians from the front, v from shoulder 0 to hip 1."""
    n, phase = person.repeats, person.phase
    side = math.pi if person.pattern_back else 0.0
    if name == "hoops":
        return ((v * n + phase) % 1.0) < 0.5
    if name == "stripes":
        return ((azimuth * (n / 2.4) + phase) % 1.0) < 0.42
    if name == "checks":
        return (((v * n + phase) % 1.0) < 0.5) ^ (((azimuth * (n / 2.8)) % 1.0) < 0.5)
    if name == "yoke":
        return v < 0.22 + 0.3 * phase
    if name == "band":
        return np.abs(v - (0.25 + 0.45 * phase)) < 0.10
    if name == "halves":
        return np.sin(azimuth) > 0
    if name == "print":
        return wrap(azimuth - side) ** 2 / 0.45 + (v - 0.36) ** 2 / (0.02 + 0.03 * phase) < 1.0
    if name == "sash":
        return np.abs(v - 0.45 - 0.42 * np.sin(azimuth) * (1 if phase > 0.5 else -1)) < 0.11
    if name == "sides":
        return np.abs(np.sin(azimuth)) > 0.72
    if name == "dots":
        row = np.floor(v * n)
        return ((v * n) % 1.0 - 0.5) ** 2 + ((azimuth * (n / 2.8) + 0.5 * row) % 1.0 - 0.5) ** 2 < 0.1
    return False


def wrap(angle: np.ndarray) -> np.ndarray:
    """Return angles in [-pi, pi)."""
    return (angle + math.pi) % (2 * math.pi) - math.pi


class Figure:
    """One person in one pose on one canvas: projects the skeleton, then paints it from far to near."""

    def __init__(self, person: Person, shot: Shot, height: int, width: int, thermal: bool) -> None:
        self.p, self.s = person, shot
        light, ambient = ((0.0, 0.0, 0.25), 0.75) if thermal else (shot.light, shot.ambient)
        self.canvas = Canvas(height, width, light, ambient)
        self.unit = shot.scale * person.stature * height
        self.top = shot.foot * height - self.unit
        self.middle = width / 2 + shot.shift * height
        self.cos, self.sin = math.cos(shot.yaw), math.sin(shot.yaw)
        self.wide = self.unit * shot.stretch

    def at(self, x: float, y: float, z: float = 0.0) -> tuple[float, float]:
        """Project a body point (sideways, down, forward; statures) to pixels."""
        forward = self.s.lean * (0.5 - y) + z
        return self.middle + self.wide * (x * self.cos + forward * self.sin), self.top + self.unit * y

    def near(self, x: float, z: float) -> float:
        """Return how far towards the camera a body point lies, in statures."""
        return z * self.cos - x * self.sin

    def half(self, across: float, deep: float) -> float:
        """Return the half width in pixels of an elliptical section seen at the yaw."""
        return self.wide * math.hypot(across * self.cos, deep * self.sin)

    def draw(self) -> Canvas:
        """Paint everything and return the canvas."""
        arms = [self.arm(side) for side in (-1, 1)]
        legs = [self.leg(side) for side in (-1, 1)]
        behind = self.cos > 0
        for limb in arms:
            if limb[0] < -0.03:
                self.paint_arm(*limb[1:])
        if self.p.bag == "backpack" and behind:
            self.backpack()
        if self.p.bag == "shoulder bag" and self.near(self.p.bag_side, 0) < 0:
            self.shoulder_bag()
        if behind:
            self.hair_behind()
        for limb in sorted(legs):
            self.paint_leg(*limb[1:])
        self.hips()
        self.neck()
        self.torso()
        if self.p.bag == "backpack" and not behind:
            self.backpack()
        self.head()
        if not behind:
            self.hair_behind()
        if self.p.bag == "shoulder bag" and self.near(self.p.bag_side, 0) >= 0:
            self.shoulder_bag()
        for limb in sorted(arms):
            if limb[0] >= -0.03:
                self.paint_arm(*limb[1:])
        return self.canvas

    # Limbs -----------------------------------------------------------------------------------------------------------
    def leg(self, side: int):
        p, s = self.p, self.s
        swing = s.stride * math.sin(s.phase + (0 if side > 0 else math.pi))
        lift = 0.9 * s.stride * max(0.0, math.cos(s.phase + (0 if side > 0 else math.pi)))
        hip = (side * p.hip * 0.52, p.crotch - 0.02, 0.0)
        thigh, shin = (0.96 - p.crotch) * 0.51, (0.96 - p.crotch) * 0.53
        knee = (hip[0] * 0.95, hip[1] + thigh * math.cos(swing), thigh * math.sin(swing))
        fold = swing - lift - 0.12 * s.stride
        ankle = (hip[0] * 0.9, knee[1] + shin * math.cos(fold), knee[2] + shin * math.sin(fold))
        return self.near(knee[0], knee[2]), side, hip, knee, ankle, fold

    def paint_leg(self, side: int, hip, knee, ankle, fold: float) -> None:
        p, c, k = self.p, self.canvas, self.unit
        bare = p.lower in ("shorts", "skirt", "long skirt") or p.upper == "dress"
        loose = 1.45 if p.lower == "wide trousers" else 1.0
        cover = 1.0 if not bare else (p.lower_hem if p.lower == "shorts" and p.upper != "dress" else 0.0)
        toe = (ankle[0] * 1.15, ankle[1] + 0.025, ankle[2] + 0.085)
        c.tube(
            self.at(ankle[0], ankle[1] + 0.018, ankle[2] - 0.01), self.at(*toe), 0.024 * k, 0.019 * k, self.shoe_paint
        )
        gain = 0.88 if self.near(hip[0], 0) < 0 else 1.0
        boot = 1.0 - p.boots

        def cloth(u, v, start, span):
            t = start + v * span
            colour = self.leg_dye(u, t, side) if cover > 0 else np.uint8(SKIN)
            colour = np.where(t > cover, np.uint8(SKIN), colour) if cover < 1 else colour
            return np.where(t > 0.5 + 0.5 * boot, np.uint8(SHOES), colour) if p.boots else colour

        wide_knee = p.leg * (0.78 if cover > 0.45 else 0.68) * (1 + 0.5 * (loose - 1)) * k
        wide_ankle = p.leg * (0.5 if cover >= 1 else 0.42) * loose * k
        c.tube(self.at(*knee), self.at(*ankle), wide_knee, wide_ankle, lambda u, v: cloth(u, v, 0.5, 0.5), gain, 0.3)
        c.tube(self.at(*hip), self.at(*knee), p.leg * k, wide_knee, lambda u, v: cloth(u, v, 0.0, 0.5), gain, 0.3)

    def shoe_paint(self, u, v):
        return np.where(u > 0.45, np.uint8(SHOES + 1), np.uint8(SHOES))

    def leg_dye(self, u, t, side: int):
        name = self.p.leg_pattern
        if name == "plain":
            return np.uint8(LOWER)
        azimuth = np.arcsin(np.clip(u, -1, 1)) * -1 - self.s.yaw
        if name == "side stripe":
            second = wrap(azimuth - side * math.pi / 2) ** 2 < 0.25
        elif name == "knees":
            second = np.abs(t - 0.5) < 0.13
        elif name == "cuffs":
            second = t > 0.8
        elif name == "stripes":
            second = ((azimuth * 1.3) % 1.0) < 0.4
        else:
            second = ((t * 7 % 1.0) < 0.5) ^ ((azimuth % 1.0) < 0.5)
        return second + np.uint8(LOWER)

    def arm(self, side: int):
        p, s = self.p, self.s
        pose, bend = s.arm_pose[0 if side < 0 else 1], s.elbow[0 if side < 0 else 1]
        swing = s.swing * math.sin(s.phase + (math.pi if side > 0 else 0))
        spread = s.spread
        if pose == "phone":
            swing, bend = 0.15, 1.9
        elif pose == "pocket":
            swing, bend, spread = -0.35, 0.75, spread + 0.25
        if p.bag == "handbag" and side == p.bag_side:
            swing, bend = 0.3 * swing, 0.15
        shoulder = (side * (p.shoulder - 0.012), 0.195, 0.0)
        upper, fore = 0.165, 0.15
        out = math.sin(spread) * side
        elbow = (
            shoulder[0] + out * upper,
            shoulder[1] + upper * math.cos(spread) * math.cos(swing),
            upper * math.sin(swing),
        )
        inward = -0.35 if pose != "swing" else 0.4
        wrist = (
            elbow[0] + inward * out * fore - (0.02 * side if pose == "phone" else 0),
            elbow[1] + fore * math.cos(swing + bend),
            elbow[2] + fore * math.sin(swing + bend),
        )
        return self.near(elbow[0], (elbow[2] + wrist[2]) / 2), side, shoulder, elbow, wrist

    def paint_arm(self, side: int, shoulder, elbow, wrist) -> None:
        p, c, k = self.p, self.canvas, self.unit
        loose = 1.25 if p.upper in ("jacket", "coat", "hoodie") else 1.0
        radius = p.arm * k
        dx, dy, dz = (w - e for w, e in zip(wrist, elbow, strict=True))
        hand = tuple(w + d * 0.28 for w, d in zip(wrist, (dx, dy, dz), strict=True))
        gain = 0.9 if self.near(side, 0) < -0.3 else 1.0

        def cloth(v, start):
            t = start + 0.5 * v
            if p.pattern == "hoops" and p.sleeve_dye == 2:
                dye = (((t * 2.2) * p.repeats + p.phase) % 1.0 < 0.5) + np.uint8(UPPER)
            else:
                dye = np.uint8(UPPER + min(p.sleeve_dye, 1))
            return np.where(t <= p.sleeve, dye, np.uint8(SKIN))

        c.tube(self.at(*wrist), self.at(*hand), 0.8 * radius, 0.62 * radius, SKIN, gain, 0.2)
        width = loose if p.sleeve > 0.5 else 0.85
        c.tube(
            self.at(*elbow),
            self.at(*wrist),
            0.95 * radius * width,
            0.72 * radius * width,
            lambda u, v: cloth(v, 0.5),
            gain,
            0.3,
        )
        width = loose if p.sleeve > 0.1 else 0.9
        c.tube(
            self.at(*shoulder),
            self.at(*elbow),
            1.25 * radius * width,
            radius * width,
            lambda u, v: cloth(v, 0.0),
            gain,
            0.3,
        )
        if p.bag == "handbag" and side == p.bag_side:
            x, y = self.at(*hand)
            size = p.bag_size * k
            c.tube((x - 0.6 * size, y + 0.8 * size), (x, y), 0.08 * size, 0.08 * size, BAG)
            c.tube((x + 0.6 * size, y + 0.8 * size), (x, y), 0.08 * size, 0.08 * size, BAG)
            wide = size * (0.55 + 0.45 * abs(self.sin))
            c.ellipse(x, y + 1.5 * size, wide, 0.85 * size, self.bag_paint, contact=0.3, tilt=0.3, power=5)

    # Trunk -----------------------------------------------------------------------------------------------------------
    def profile(self, y: list[float], across: list[float], deep: list[float]) -> tuple[list, list, list]:
        points = [self.at(0.0, row) for row in y]
        halves = [self.half(a, d) for a, d in zip(across, deep, strict=True)]
        return [q[1] for q in points], [q[0] for q in points], halves

    def hips(self) -> None:
        p, c = self.p, self.canvas
        if p.upper == "dress":
            return
        deep = p.depth * 1.1
        if p.lower in ("skirt", "long skirt"):
            end = p.crotch + (0.9 - p.crotch) * p.lower_hem
            flare = p.hip * (1.25 + 0.35 * p.phase) + 0.12 * self.s.stride
            knots = self.profile(
                [0.41, p.crotch - 0.02, end], [p.waist, p.hip * 1.05, flare], [p.waist * 0.8, p.hip * deep, flare]
            )
            c.column(*knots, self.skirt_paint, contact=0.15, tilt=0.15)
        else:
            knots = self.profile(
                [0.41, p.crotch - 0.02, p.crotch + 0.03],
                [p.waist, p.hip, p.hip * 0.85],
                [p.waist * 0.8, p.hip * deep, p.hip * 0.7],
            )
            c.column(*knots, LOWER, tilt=0.1)

    def skirt_paint(self, u, v):
        return self.leg_dye(u, 0.4 + 0.6 * v, 1)

    def torso(self) -> None:
        p, c = self.p, self.canvas
        loose = {"jacket": 1.08, "coat": 1.12, "hoodie": 1.1}.get(p.upper, 1.0)
        sh, waist, hip = p.shoulder, p.waist * loose, p.hip * loose * 1.03
        y = [0.155, 0.178, 0.2, 0.27, 0.39, p.crotch - 0.02]
        across = [0.03, sh * 0.78, sh * 0.97, sh * 0.93 * loose, waist, hip]
        deep = [0.035, sh * 0.42, sh * 0.52, sh * p.depth, waist * p.depth * 1.15, hip * p.depth * 1.1]
        if p.upper in ("coat", "dress"):
            flare = hip * (1.35 + 0.3 * p.phase if p.upper == "dress" else 1.12) + 0.1 * self.s.stride
            y, across, deep = [*y, p.hem], [*across, flare], [*deep, flare * 0.9]
        else:
            y[-1] = p.hem
            across[-1], deep[-1] = hip * 0.98, hip * p.depth
        self.hem_v = (p.crotch - 0.02 - y[0]) / (y[-1] - y[0])
        c.column(*self.profile(y, across, deep), self.torso_paint, contact=0.2, tilt=0.25)

    def torso_paint(self, u, v):
        p = self.p
        azimuth = np.arcsin(np.clip(u, -1, 1)) - self.s.yaw
        v = v / self.hem_v  # 1 at the hips whatever the hem
        dye = pattern_mask(p.pattern, azimuth, v, p) + np.uint8(UPPER)
        if p.opening or p.upper in ("tee", "vest", "dress") or p.bag in ("backpack", "shoulder bag"):
            front = wrap(azimuth)
            if p.opening:
                dye = np.where(np.abs(front) < p.opening * (0.45 + 0.55 * v), np.uint8(INNER), dye)
            elif p.upper != "dress" or p.phase > 0.5:
                dye = np.where(np.abs(front) < 0.55 - 3.5 * v, np.uint8(SKIN), dye)
            if p.bag == "backpack":
                dye = np.where((np.abs(np.abs(front) - 0.62) < 0.14) & (v < 0.72), np.uint8(BAG), dye)
            elif p.bag == "shoulder bag":
                strap = np.abs(v - 0.5 - 0.55 * np.sin(front) * p.bag_side * np.sign(np.cos(front) + 1e-6)) < 0.055
                dye = np.where(strap, np.uint8(BAG), dye)
        return dye

    def neck(self) -> None:
        x, y = self.at(0.0, 0.15)
        self.canvas.ellipse(x, y, 0.03 * self.wide, 0.05 * self.unit, SKIN, 0.85, power=4)

    # Head ------------------------------------------------------------------------------------------------------------
    def head(self) -> None:
        p, c = self.p, self.canvas
        x, y = self.at(0.0, 0.072, 0.012)
        tall, wide = 0.068 * p.head * self.unit, 0.05 * p.head * self.wide * (1 + 0.12 * abs(self.sin))
        self.face = self.s.yaw + self.s.head_turn
        if p.hat == "hood":
            c.ellipse(x - 0.012 * self.wide * self.sin, y, wide * 1.22, tall * 1.16, UPPER, contact=0.2, tilt=0.3)
            look = math.cos(self.face)
            if look > -0.2:
                shift = math.sin(self.face) * 0.35
                c.ellipse(
                    x + shift * wide, y + 0.08 * tall, wide * (0.45 + 0.4 * look), tall * 0.8, self.head_paint, 0.92
                )
        else:
            c.ellipse(x, y, wide, tall, self.head_paint, contact=0.25, tilt=0.3)
        if p.hair == "afro" and p.hat == "none":
            c.ellipse(x, y - 0.35 * tall, wide * 1.5, tall * 0.95, HAIR, 0.95, tilt=0.3)
            if math.cos(self.face) > 0:
                c.ellipse(
                    x + 0.3 * wide * math.sin(self.face), y + 0.25 * tall, wide * 0.8, tall * 0.72, self.head_paint
                )
        if p.hair == "bun" and p.hat == "none":
            c.ellipse(x - 0.6 * wide * math.sin(self.face), y - 1.1 * tall, 0.5 * wide, 0.38 * tall, HAIR)
        if p.hat == "cap":
            c.ellipse(x, y - 0.42 * tall, wide * 1.08, tall * 0.62, self.crown_paint, tilt=0.2)
            brim = x + math.sin(self.face) * wide * 1.5
            if math.cos(self.face) > -0.5:
                spread = wide * (0.35 + 0.55 * abs(math.cos(self.face)))
                c.ellipse(
                    (x + brim) / 2 + 0.15 * (brim - x),
                    y - 0.2 * tall,
                    spread + 0.3 * abs(brim - x),
                    0.13 * tall,
                    HAT + 1,
                )
        elif p.hat == "beanie":
            c.ellipse(x, y - 0.45 * tall, wide * 1.1, tall * 0.72, self.crown_paint, tilt=0.2, power=2.6)
        elif p.hat == "brimmed":
            c.ellipse(x, y - 0.6 * tall, wide * 1.05, tall * 0.62, self.crown_paint, tilt=0.2, power=3.2)
            c.ellipse(x, y - 0.24 * tall, wide * 1.95, tall * 0.17, HAT)
        if p.scarf:
            x, y = self.at(0.0, 0.158)
            c.ellipse(x, y, self.half(0.062, 0.06), 0.026 * self.unit, SCARF, contact=0.25, power=2.6)

    def crown_paint(self, u, v):
        return np.where(v > 0.62, np.uint8(HAT + 1), np.uint8(HAT))

    def head_paint(self, u, v):
        p = self.p
        azimuth = wrap(np.arcsin(np.clip(u, -1, 1)) - self.face)
        away = np.abs(azimuth)
        dye = np.full(azimuth.shape, SKIN, np.uint8)
        eyes = (np.abs(v - 0.47) < 0.05) & (np.abs(away - 0.42) < 0.2)
        mouth = (np.abs(v - 0.77) < 0.03) & (away < 0.3)
        np.copyto(dye, np.uint8(DARK), where=eyes)
        np.copyto(dye, np.uint8(SKIN + 1), where=mouth)
        if p.beard:
            np.copyto(dye, np.uint8(HAIR), where=(v > 0.64) & (away < 1.5) & ~mouth)
        if p.hair != "bald":
            # The hairline falls from the forehead to the nape; a bob and long hair reach further forward.
            nape = {"short": 0.62, "bob": 1.1, "long": 1.1}.get(p.hair, 0.72)
            front = {"bob": 0.95, "long": 1.0}.get(p.hair, 1.35)
            line = np.where(away > front, nape, 0.24 + 0.05 * away)
            np.copyto(dye, np.uint8(HAIR), where=v < line)
        return dye

    def hair_behind(self) -> None:
        p, c = self.p, self.canvas
        if p.hair == "long":
            x, y = self.at(0.0, 0.135, -0.025)
            c.ellipse(
                x, y, self.half(0.058, 0.04) * p.head, 0.115 * self.unit, HAIR, 0.9, contact=0.2, tilt=0.3, power=3
            )
        elif p.hair == "bob":
            x, y = self.at(0.0, 0.09, -0.012)
            c.ellipse(x, y, self.half(0.06, 0.055) * p.head, 0.072 * self.unit, HAIR, 0.9, tilt=0.3, power=3)
        elif p.hair == "ponytail":
            c.tube(
                self.at(0.0, 0.05, -0.055),
                self.at(0.0, 0.19, -0.085),
                0.018 * self.unit,
                0.012 * self.unit,
                HAIR,
                contact=0.2,
            )

    # Bags ------------------------------------------------------------------------------------------------------------
    def bag_paint(self, u, v):
        return np.where((np.abs(v - 0.62) < 0.05) | (v < 0.12) | (np.abs(u) > 0.9), np.uint8(BAG + 1), np.uint8(BAG))

    def backpack(self) -> None:
        p = self.p
        deep = p.shoulder * 0.55 + 0.03
        x, _ = self.at(0.0, 0.3, -deep)
        height = 0.11 + 0.6 * (p.bag_size - 0.05)
        _, y = self.at(0.0, 0.2 + height)
        self.canvas.ellipse(
            x,
            y,
            self.half(p.shoulder * 0.82, 0.055),
            height * self.unit,
            self.bag_paint,
            contact=0.3,
            tilt=0.3,
            power=4,
        )

    def shoulder_bag(self) -> None:
        p = self.p
        x, y = self.at(p.bag_side * (p.hip + 0.03), 0.5, 0.0)
        self.canvas.ellipse(
            x,
            y,
            self.half(0.035, p.bag_size * 1.3),
            p.bag_size * self.unit,
            self.bag_paint,
            contact=0.3,
            tilt=0.3,
            power=4,
        )


# Scenes --------------------------------------------------------------------------------------------------------------
SCENES = ("corridor", "hall", "street", "garden")


def smooth_noise(rng: np.random.Generator, height: int, width: int, cell: float) -> np.ndarray:
    """Return a (height, width) field of bilinear noise in [0, 1] whose features are `cell` pixels wide."""
    rows, columns = max(2, round(height / cell)), max(2, round(width / cell))
    coarse = Image.fromarray((rng.random((rows, columns)) * 255).astype(np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.float32) / 255


def draw_scene(rng: np.random.Generator, kind: str, spectrum: str, height: int, clutter: float) -> np.ndarray:
    """Return one camera's panorama, float32 linear light (1.2 height, 6 height, 3 or 1), wider than any crop.

    kind: one of SCENES. spectrum: one of SPECTRA. height: of the crop, in pixels. clutter: 0 (bare) to 1 (busy).
    """
    rows, columns = math.ceil(1.2 * height), 6 * height
    channels = 3 if spectrum == "visible" else 1
    y = (np.arange(rows, dtype=np.float32)[:, None] + 0.5) / height
    x = (np.arange(columns, dtype=np.float32) + 0.5) / height

    def tone(low: float, high: float, tint: float = 0.1, heat: float = 0.12) -> np.ndarray:
        if spectrum == "thermal":
            return np.array([heat + 0.1 * rng.random()], np.float32)
        level = rng.uniform(low, high)
        if spectrum == "near infrared":
            return np.array([rng.uniform(0.6, 1.4) * level], np.float32)
        return np.clip(level * (1 + tint * rng.uniform(-1, 1, 3)), 0, 1).astype(np.float32)

    def leaf() -> np.ndarray:
        # Foliage: dark green to the eye, bright beyond 700 nm, at air temperature.
        values = {"visible": (0.05, 0.13, 0.03), "near infrared": (0.55,), "thermal": (0.12,)}
        return np.array(values[spectrum], np.float32) * rng.uniform(0.7, 1.3)

    outdoor = kind in ("street", "garden")
    foot = rng.uniform(0.62, 0.78)
    horizon = foot - rng.uniform(0.3, 0.5)
    wall = tone(0.25, 0.6)
    image = np.ones((rows, columns, channels), np.float32) * wall
    image *= (1.1 - 0.35 * y)[..., None]
    image *= 0.85 + 0.3 * smooth_noise(rng, rows, columns, height * 0.35)[..., None]

    def box(left: float, top: float, width: float, tall: float, colour: np.ndarray, relief: float = 0.0) -> None:
        area = np.s_[
            max(0, round(top * height)) : max(0, round((top + tall) * height)),
            max(0, round(left * height)) : max(0, round((left + width) * height)),
        ]
        across = np.linspace(-1, 1, image[area].shape[1], dtype=np.float32)
        image[area] = colour * (1 - relief * across**2 + 0.3 * relief * across)[None, :, None]

    if kind == "street":
        brick = rng.uniform(0.03, 0.05)
        course = np.floor(y / brick)
        joint = ((y / brick) % 1 < 0.18) | (((x / (2.2 * brick)) + 0.5 * (course % 2)) % 1 < 0.08)
        image *= np.where(joint, 0.75, 1.0)[..., None]
    if kind == "garden":
        leaves = (
            smooth_noise(rng, rows, columns, height * 0.05) * 0.6
            + smooth_noise(rng, rows, columns, height * 0.02) * 0.4
        )
        crown = smooth_noise(rng, rows, columns, height * 0.4)
        cover = (crown > 0.42)[..., None]
        image = np.where(cover, leaf() * (0.35 + 1.5 * leaves**2)[..., None], image)

    left = rng.uniform(0, 0.3)
    while left < 6:
        width = rng.uniform(0.25, 0.6)
        choice = rng.random()
        if kind == "corridor" and choice < 0.6:
            frame, leafc = tone(0.1, 0.5), tone(0.08, 0.6, 0.3)
            box(left, foot - 0.62, width, 0.62, frame)
            box(left + 0.03, foot - 0.59, width - 0.06, 0.59, leafc, 0.15)
            box(left + width - 0.09, foot - 0.3, 0.04, 0.015, tone(0.6, 0.9))
        elif kind == "hall" and choice < 0.55:
            box(left, -0.1, 0.18 * (1 + width), foot + 0.1, tone(0.3, 0.7), 0.55)
        elif kind in ("hall", "street") and choice < 0.85:
            pane = tone(0.5, 1.0, 0.15) if kind == "hall" else tone(0.04, 0.2, 0.3, 0.2)
            box(left, foot - 0.7, width, 0.45, tone(0.2, 0.5))
            for half in (0, 1):
                box(
                    left + 0.02 + half * width / 2,
                    foot - 0.68,
                    width / 2 - 0.03,
                    0.41,
                    pane * rng.uniform(0.7, 1.1),
                    0.2,
                )
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
            grain = grain * np.where(smooth_noise(rng, rows, columns, height * 0.5) > 0.5, 1.0, 0.8)
        else:
            grain = grain * np.where(np.abs(away % 2.0 - 1) < 0.07, 1.7, 1.0)
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
        image *= np.clip(0.35 + 0.6 * (y - foot), 0.3, 0.8)[..., None] * 0.8
    radius = height / 128 * (1.2 if spectrum != "thermal" else 3.0)
    planes = [
        np.asarray(
            Image.fromarray((np.sqrt(np.clip(image[..., c], 0, 1)) * 255).astype(np.uint8)).filter(
                ImageFilter.GaussianBlur(radius)
            )
        )
        for c in range(channels)
    ]
    return (np.stack(planes).astype(np.float32) / 255) ** 2


FOLDS = None


def folds(height: int, width: int, offset: tuple[int, int]) -> np.ndarray:
    """Return a (height, width) field about 1 that wrinkles cloth, shifted by `offset`."""
    global FOLDS
    if FOLDS is None:
        rng = np.random.default_rng(7)
        FOLDS = 0.80 + 0.26 * smooth_noise(rng, 512, 512, 14.0) + 0.14 * smooth_noise(rng, 512, 512, 5.0)
    y, x = offset[0] % (512 - min(height, 511)), offset[1] % (512 - min(width, 511))
    if height > 511 or width > 511:
        return np.resize(FOLDS, (height, width))
    return FOLDS[y : y + height, x : x + width]


def render(
    person: Person, shot: Shot, scene: np.ndarray, cast: np.ndarray, spectrum: str, size: tuple[int, int]
) -> np.ndarray:
    """Return one crop as uint8 (height, width, 3); both infrared spectra as three equal channels.

    scene: (3 or 1, rows, columns) panorama from `draw_scene` for this height. cast: (3,) the camera's white balance.
    """
    height, width = size
    sub = 2 if height >= 96 else -(-192 // height)
    canvas = Figure(person, shot, height * sub, width * sub, spectrum == "thermal").draw()
    table = {"visible": person.visible.T, "near infrared": person.infrared[None], "thermal": person.heat[None]}[
        spectrum
    ]
    shade = canvas.shade
    if spectrum != "thermal":
        shade = shade * folds(*shade.shape, shot.folds)
    index = canvas.index.astype(np.intp)
    covered = shrink((canvas.index > 0).astype(np.float32), sub)

    top = int(shot.pan[1] * (scene.shape[1] - height))
    left = int(shot.pan[0] * (scene.shape[2] - width))
    backdrop = scene[:, top : top + height, left : left + width]
    if shot.mirror:
        backdrop = backdrop[:, :, ::-1]
    y = (np.arange(height, dtype=np.float32)[:, None] + 0.5) / height
    x = (np.arange(width, dtype=np.float32) + 0.5) / height
    ground = np.float32(shot.scene_exposure) * (1 - covered)
    if spectrum == "visible":
        # The soft shadow under the feet.
        ground *= 1 - 0.5 * np.exp(
            -(((y - shot.foot) / 0.025) ** 2) - ((x - width / height / 2 - shot.shift) / 0.11) ** 2
        )
    lit = shot.exposure * np.exp(-(((y - shot.hotspot[0]) ** 2 + (x - shot.hotspot[1]) ** 2) * shot.hotspot[2]))
    planes = np.empty((len(table), height, width), np.float32)
    for plane, values, behind, gain in zip(planes, table, backdrop, cast, strict=False):
        np.multiply(shrink(values[index] * shade, sub) + behind * ground, lit * gain, out=plane)
    if shot.occluder is not None:
        ox, otop, owide, level = shot.occluder
        u = (x - ox) / owide
        bar = (np.abs(u) < 1) & (y > otop)
        np.copyto(planes, level * (1 - 0.6 * u * u) * (0.9 + 0.2 * (y * 9 % 1)), where=bar)
    np.sqrt(np.clip(planes, 0.0, 1.0, out=planes), out=planes)
    planes *= 255
    pixels = planes.astype(np.uint8)
    image = Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)) if len(pixels) == 3 else pixels[0])
    blur = (shot.blur + (1.0 if spectrum == "thermal" else 0.0)) * height / 128
    if blur > 0.15:
        image = image.filter(ImageFilter.GaussianBlur(blur))
    pixels = np.asarray(image, np.float32)
    noise = np.random.Generator(np.random.SFC64(shot.noise_seed)).standard_normal(pixels.shape, np.float32)
    noise *= 255 * shot.noise
    noise += pixels
    pixels = np.clip(noise + 0.5, 0, 255, out=noise).astype(np.uint8)
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Average factor x factor pixels into one."""
    rows = sum(image[i::factor] for i in range(factor))
    return sum(rows[:, i::factor] for i in range(factor)) * np.float32(1 / factor**2)
