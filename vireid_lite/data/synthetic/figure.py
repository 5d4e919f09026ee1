"""Draw one pedestrian crop in the visible, the near infrared or the thermal band: everything here is deterministic.

A person is a skeleton dressed in tubes and columns, projected orthographically at a yaw. Every pixel of a supersampled
canvas gets a *material and dye* number and a shade; a table then turns numbers into colour, reflectance or heat, so
one drawing serves three spectra. Lengths of the body are in units of its stature (y from the crown down), lengths of
the image in units of its height. Light is linear until the camera's square-root response.
"""

import math
from collections import namedtuple
from collections.abc import Callable

import numpy as np

from vireid_lite.data.synthetic.paint import BAG, DARK, HAIR, HAT, INNER, LOWER, SCARF, SHOES, SKIN, UPPER, Canvas

SPECTRA = ("visible", "near infrared", "thermal")
PERSON = (
    "stature shoulder waist hip depth arm leg crotch head hair beard glasses hat upper hem sleeve sleeve_dye opening "
    "pattern repeats phase pattern_back trim lower lower_hem leg_pattern cut boots bag bag_side bag_size scarf "
    "visible infrared heat"
)
SHOT = (
    "yaw phase stride swing elbow arm_pose spread lean head_turn scale stretch shift foot pan mirror exposure "
    "scene_exposure light ambient hotspot folds blur noise noise_seed occluder"
)


class Person(namedtuple("Person", PERSON)):
    """What one identity carries from image to image, in both spectra.

    Lengths are in units of the stature; `visible` is (22, 3) linear RGB, `infrared` (22,) near-infrared reflectance and
    `heat` (22,) temperature from 0 (ambient) to 1 (skin), one row for each dye of each material.
    """


class Shot(namedtuple("Shot", SHOT)):
    """What one image draws for itself: pose, view, framing, light and the camera's faults.

    yaw in radians (0 faces the camera, pi/2 walks to the right); stride, swing, elbow, spread, lean in radians; scale,
    shift, foot, and the pan over the scene (x, y) in units of the image's height; exposure a factor; light (x, y,
    towards the camera); blur a standard deviation in pixels at 128 rows; noise a standard deviation on a scale of 1;
    hotspot (y, x, steepness), occluder (x, top, half width; level; raggedness) or None: x from the image's middle.
    """


# Where the second dye shows on a torso: azimuth a in radians from the front, v from shoulder 0 to hip 1, person p.
PATTERNS = {
    "plain": lambda a, v, p: False,
    "hoops": lambda a, v, p: ((v * p.repeats + p.phase) % 1.0) < 0.5,
    "stripes": lambda a, v, p: ((a * (p.repeats / 2.4) + p.phase) % 1.0) < 0.42,
    "checks": lambda a, v, p: (((v * p.repeats + p.phase) % 1.0) < 0.5) ^ (((a * (p.repeats / 2.8)) % 1.0) < 0.5),
    "yoke": lambda a, v, p: v < 0.22 + 0.3 * p.phase,
    "band": lambda a, v, p: np.abs(v - (0.25 + 0.45 * p.phase)) < 0.10,
    "halves": lambda a, v, p: np.sin(a) > 0,
    "print": lambda a, v, p: (
        wrap(a - math.pi * p.pattern_back) ** 2 / 0.45 + (v - 0.36) ** 2 / (0.02 + 0.03 * p.phase) < 1.0
    ),
    "sash": lambda a, v, p: np.abs(v - 0.45 - 0.42 * np.sin(a) * (1 if p.phase > 0.5 else -1)) < 0.11,
    "sides": lambda a, v, p: np.abs(np.sin(a)) > 0.72,
    "dots": lambda a, v, p: (
        ((v * p.repeats) % 1.0 - 0.5) ** 2 + ((a * (p.repeats / 2.8) + 0.5 * np.floor(v * p.repeats)) % 1.0 - 0.5) ** 2
        < 0.1
    ),
}
# The same on a leg: t from hip 0 to ankle 1, azimuth a, and the side, -1 or 1.
LEG_PATTERNS = {
    "plain": lambda t, a, side: False,
    "knees": lambda t, a, side: np.abs(t - 0.5) < 0.13,
    "cuffs": lambda t, a, side: t > 0.82,
    "side stripe": lambda t, a, side: wrap(a - side * math.pi / 2) ** 2 < 0.3,
    "stripes": lambda t, a, side: (a * 1.3) % 1.0 < 0.4,
    "checks": lambda t, a, side: ((t * 5 % 1.0) < 0.5) ^ ((a * 0.8 % 1.0) < 0.5),
}


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
        self.wide = self.unit * shot.stretch
        self.top = shot.foot * height - self.unit
        self.middle = width / 2 + shot.shift * height
        self.cos, self.sin = math.cos(shot.yaw), math.sin(shot.yaw)
        self.face = shot.yaw + shot.head_turn

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

    def azimuth(self, u: np.ndarray) -> np.ndarray:
        """Return the angle from the body's front of the surface seen at u in [-1, 1] across a solid."""
        return np.arcsin(np.clip(u, -1, 1)) - self.s.yaw

    def solid(
        self, y: list[float], across: list[float], deep: list[float], paint: int | Callable, **shading: float
    ) -> None:
        """Paint a column whose knots are body rows with their half widths seen from the front and from the side."""
        points = [self.at(0.0, row) for row in y]
        halves = [self.half(a, d) for a, d in zip(across, deep, strict=True)]
        self.canvas.column([q[1] for q in points], [q[0] for q in points], halves, paint, **shading)

    def blob(
        self, place: tuple, half: float, tall: float, paint: int | Callable, gain: float = 1.0, **shading: float
    ) -> None:
        """Paint an ellipse about a body point: half its width in pixels, half its height in statures."""
        self.canvas.ellipse(*self.at(*place), half, tall * self.unit, paint, gain, **shading)

    def draw(self) -> Canvas:
        """Paint everything and return the canvas."""
        p, facing = self.p, self.cos > 0
        arms, legs = sorted(self.arm(side) for side in (-1, 1)), sorted(self.leg(side) for side in (-1, 1))
        bag_near = self.near(p.bag_side, 0) >= 0
        back = [self.backpack] * (p.bag == "backpack") + [self.hood_down, self.hair_behind]
        side = [self.shoulder_bag] * (p.bag == "shoulder bag")
        for limb in arms:
            if limb[0] < -0.03:
                self.paint_arm(*limb[1:])
        for part in back * facing + side * (not bag_near):
            part()
        for limb in legs:
            self.paint_leg(*limb[1:])
        self.hips()
        self.blob((0.0, 0.15), 0.031 * self.wide, 0.05, SKIN, 0.8, power=4)
        self.torso()
        behind = [] if facing else back
        for part in [*behind[:-1], self.head, *behind[-1:], *side * bag_near]:
            part()
        for limb in arms:
            if limb[0] >= -0.03:
                self.paint_arm(*limb[1:])
        return self.canvas

    def limb(self, segments: list, gain: float, contact: float = 0.3) -> None:
        """Paint joined tubes (a, b, start radius, end radius, paint), after darkening what lies behind them all."""
        for a, b, start, end, _ in segments:
            # The root of a limb belongs to the trunk and casts nothing on it.
            root = (a[0] + 0.35 * (b[0] - a[0]), a[1] + 0.35 * (b[1] - a[1]))
            self.canvas.contact(root, b, start, end, contact)
        for a, b, start, end, paint in segments:
            self.canvas.tube(a, b, start, end, paint, gain)

    def leg(self, side: int) -> tuple:
        """Return (nearness, side, hip, knee, ankle) of one leg of the walking pose."""
        p, s = self.p, self.s
        phase = s.phase + (0 if side > 0 else math.pi)
        swing = s.stride * math.sin(phase)
        fold = swing - 0.9 * s.stride * max(0.0, math.cos(phase)) - 0.12 * s.stride
        hip = (side * p.hip * 0.5, p.crotch - 0.02, 0.0)
        thigh, shin = (0.96 - p.crotch) * 0.51, (0.96 - p.crotch) * 0.53
        knee = (hip[0] * 0.97, hip[1] + thigh * math.cos(swing), thigh * math.sin(swing))
        ankle = (hip[0] * 0.92, knee[1] + shin * math.cos(fold), knee[2] + shin * math.sin(fold))
        return self.near(knee[0], knee[2]), side, hip, knee, ankle

    def paint_leg(self, side: int, hip: tuple, knee: tuple, ankle: tuple) -> None:
        p, k = self.p, self.unit
        cover = 1.0 if "trousers" in p.lower and p.upper != "dress" else p.lower_hem * (p.lower == "shorts")

        def cloth(u: np.ndarray, t: np.ndarray) -> np.ndarray:
            dye = np.where(t > cover, np.uint8(SKIN), self.leg_dye(u, t, side) if cover else np.uint8(SKIN))
            return np.where(t > 1 - 0.5 * p.boots, np.uint8(SHOES), dye) if p.boots else dye

        def shoe(u: np.ndarray, v: np.ndarray) -> np.ndarray:
            return np.where(u > 0.45, np.uint8(SHOES + 1), np.uint8(SHOES))

        gain = 0.86 if self.near(hip[0], 0) < 0 else 1.0
        heel = self.at(ankle[0], ankle[1] + 0.018, ankle[2] - 0.01)
        toe = self.at(ankle[0] * 1.25, ankle[1] + 0.025, ankle[2] + 0.085)
        self.canvas.tube(heel, toe, 0.025 * k, 0.02 * k, shoe, gain)
        bare_knee, bare_ankle = p.leg * 0.72 * k, p.leg * 0.44 * k
        knee_radius = p.leg * (0.7 + 0.2 * p.cut) * k if cover > 0.45 else bare_knee
        ankle_radius = p.leg * (0.42 + 0.5 * p.cut) * k if cover >= 1 else bare_ankle
        a, b, c = self.at(*hip), self.at(*knee), self.at(*ankle)
        lower = (b, c, knee_radius, ankle_radius, lambda u, v: cloth(u, 0.5 + 0.5 * v))
        self.limb([lower, (a, b, p.leg * k, knee_radius, lambda u, v: cloth(u, 0.5 * v))], gain)

    def leg_dye(self, u: np.ndarray, t: np.ndarray, side: int) -> np.ndarray:
        """Return the dye of a leg's cloth: u across it, t from hip 0 to ankle 1."""
        return LEG_PATTERNS[self.p.leg_pattern](t, -self.azimuth(-u), side) + np.uint8(LOWER)

    def arm(self, side: int) -> tuple:
        """Return (nearness, side, shoulder, elbow, wrist) of one arm."""
        p, s = self.p, self.s
        pose, bend, spread = s.arm_pose[side > 0], s.elbow[side > 0], s.spread
        swing = s.swing * math.sin(s.phase + (math.pi if side > 0 else 0))
        if pose == "phone":
            swing, bend = 0.15, 1.9
        elif pose == "pocket":
            swing, bend, spread = -0.35, 0.75, spread + 0.25
        if p.bag == "handbag" and side == p.bag_side:
            swing, bend, pose = 0.3 * swing, 0.15, "swing"
        out = math.sin(spread) * side
        shoulder = (side * (p.shoulder - 0.016), 0.212, 0.0)
        drop = 0.155 * math.cos(spread) * math.cos(swing)
        elbow = (shoulder[0] + out * 0.155, shoulder[1] + drop, 0.155 * math.sin(swing))
        inward = 0.06 * out if pose == "swing" else -0.05 * out - 0.02 * side
        down, ahead = 0.145 * math.cos(swing + bend), 0.145 * math.sin(swing + bend)
        wrist = (elbow[0] + inward, elbow[1] + down, elbow[2] + ahead)
        return self.near(elbow[0], (elbow[2] + wrist[2]) / 2), side, shoulder, elbow, wrist

    def paint_arm(self, side: int, shoulder: tuple, elbow: tuple, wrist: tuple) -> None:
        p, radius = self.p, self.p.arm * self.unit
        hand = tuple(w + 0.28 * (w - e) for w, e in zip(wrist, elbow, strict=True))

        def cloth(t: np.ndarray) -> np.ndarray:
            if p.pattern == "hoops" and p.sleeve_dye == 2:
                dye = ((t * 2.2 * p.repeats + p.phase) % 1.0 < 0.5) + np.uint8(UPPER)
            else:
                dye = np.uint8(UPPER + min(p.sleeve_dye, 1))
            if p.trim:
                dye = np.where(t > p.sleeve - 0.09, np.uint8(INNER + 1), dye)
            return np.where(t <= p.sleeve, dye, np.uint8(SKIN))

        a, b, c = self.at(*shoulder), self.at(*elbow), self.at(*wrist)
        loose = 1.25 if p.upper in ("jacket", "coat", "hoodie") else 1.08
        upper, lower = loose if p.sleeve > 0.1 else 0.92, loose if p.sleeve > 0.5 else 0.85
        palm = (c, self.at(*hand), 0.8 * radius, 0.62 * radius, SKIN)
        fore = (b, c, 0.95 * radius * lower, 0.74 * radius * lower, lambda u, v: cloth(0.5 + 0.5 * v))
        top = (a, b, 1.16 * radius * upper, radius * upper, lambda u, v: cloth(0.5 * v))
        self.limb([palm, fore, top], 0.9 if self.near(side, 0) < -0.3 else 1.0)
        if p.bag == "handbag" and side == p.bag_side:
            x, y = self.at(*hand)
            size = p.bag_size * self.unit
            for end in (-0.6, 0.6):
                self.canvas.tube((x + end * size, y + 0.8 * size), (x, y), 0.08 * size, 0.08 * size, BAG)
            wide = size * (0.55 + 0.45 * abs(self.sin))
            self.canvas.ellipse(x, y + 1.5 * size, wide, 0.85 * size, self.bag_dye, contact=0.3, tilt=0.3, power=5)

    def hips(self) -> None:
        p, deep = self.p, self.p.depth * 1.1
        if p.upper == "dress":
            return
        if "skirt" in p.lower:
            end, flare = p.crotch + (0.9 - p.crotch) * p.lower_hem, p.hip * (1.1 + 0.5 * p.cut) + 0.12 * self.s.stride
            y, across = [0.41, p.crotch - 0.02, end], [p.waist, p.hip * 1.05, flare]
            paint, fullness = lambda u, v: self.leg_dye(u, 0.4 + 0.6 * v, 1), [p.waist * 0.8, p.hip * deep, flare]
        else:
            y, across = [0.41, p.crotch - 0.03, p.crotch + 0.03], [p.waist, p.hip, p.hip * 0.9]
            paint, fullness = LOWER, [p.waist * 0.8, p.hip * deep, p.hip * 0.7]
        self.solid(y, across, fullness, paint, contact=0.15, tilt=0.12)

    def torso(self) -> None:
        p = self.p
        loose = {"jacket": 1.08, "coat": 1.1, "hoodie": 1.1, "vest": 0.97}.get(p.upper, 1.0)
        sh, waist, hip = p.shoulder, p.waist * loose, p.hip * loose
        y = [0.155, 0.172, 0.188, 0.21, 0.28, 0.39, p.crotch - 0.02]
        across = [0.03, sh * 0.6, sh * 0.9, sh, sh * 0.94 * loose, waist * 1.04, hip]
        deep = [0.035, sh * 0.38, sh * 0.46, sh * 0.52, sh * p.depth, waist * p.depth * 1.15, hip * p.depth * 1.1]
        if p.upper in ("coat", "dress"):
            flare = hip * (1.2 + 0.5 * p.cut if p.upper == "dress" else 1.1) + 0.1 * self.s.stride
            y, across, deep = [*y, p.hem], [*across, flare], [*deep, flare * 0.9]
        else:
            y[-1] = p.hem
        self.hip_v = (p.crotch - 0.02 - y[0]) / (y[-1] - y[0])
        self.solid(y, across, deep, self.torso_dye, contact=0.2, tilt=0.25)
        if p.upper in ("shirt", "jacket", "coat"):
            collar = INNER + 1 if p.trim else UPPER
            self.blob((0.0, 0.163), self.half(0.047, 0.047), 0.014, collar, contact=0.2)

    def torso_dye(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return the dye of the upper garment: pattern, opening, neckline, zip, hem and straps."""
        p = self.p
        azimuth, v = self.azimuth(u), v / self.hip_v  # v is 1 at the hips whatever the hem
        dye = PATTERNS[p.pattern](azimuth, v, p) + np.uint8(UPPER)
        front = wrap(azimuth)
        away = np.abs(front)
        if p.opening:
            dye = np.where(away < p.opening * (0.45 + 0.55 * v), np.uint8(INNER), dye)
        elif p.upper in ("jacket", "coat") or (p.upper == "hoodie" and p.trim):
            dye = np.where(away < 0.07, np.uint8(INNER + 1), dye)
        elif p.upper in ("tee", "vest") or (p.upper == "dress" and p.phase > 0.5):
            dye = np.where(away < 0.6 - 3.8 * v, np.uint8(SKIN), dye)
        if p.trim and p.upper not in ("coat", "tee"):
            dye = np.where(v * self.hip_v > 0.93, np.uint8(INNER + 1), dye)
        if p.bag == "backpack":
            dye = np.where((np.abs(away - 0.62) < 0.13) & (v < 0.72), np.uint8(BAG), dye)
        elif p.bag == "shoulder bag":
            strap = 0.5 + 0.55 * np.sin(front) * p.bag_side * np.sign(np.cos(front) + 1e-6)
            dye = np.where(np.abs(v - strap) < 0.055, np.uint8(BAG), dye)
        return dye

    def head(self) -> None:
        p, c = self.p, self.canvas
        x, y = self.at(0.0, 0.073, 0.012)
        tall, wide = 0.069 * p.head * self.unit, 0.052 * p.head * self.wide * (1 + 0.12 * abs(self.sin))
        look, turn = math.cos(self.face), math.sin(self.face)
        if p.hat == "hood":
            c.ellipse(x - 0.2 * wide * turn, y, wide * 1.25, tall * 1.16, UPPER, contact=0.2, tilt=0.3)
            if look > -0.2:
                across = wide * (0.45 + 0.4 * look)
                c.ellipse(x + 0.35 * wide * turn, y + 0.08 * tall, across, tall * 0.8, self.face_dye, 0.9)
        else:
            for side in (-1, 1):
                if abs(look) > 0.3 and p.hair not in ("bob", "long", "afro"):
                    c.ellipse(x + side * wide * abs(look), y + 0.05 * tall, 0.16 * wide, 0.17 * tall, SKIN, 0.85)
            c.ellipse(x, y, wide, tall, self.face_dye, contact=0.25, tilt=0.25, power=2.2, taper=0.2)
        if p.hat == "none" and p.hair == "afro":
            c.ellipse(x - 0.2 * wide * turn, y - 0.3 * tall, wide * 1.5, tall * 0.95, HAIR, 0.95, tilt=0.3)
            if look > 0:
                c.ellipse(x + 0.35 * wide * turn, y + 0.25 * tall, wide * 0.8, tall * 0.72, self.face_dye)
        if p.hat == "none" and p.hair == "bun":
            c.ellipse(x - 0.6 * wide * turn, y - 1.05 * tall, 0.5 * wide, 0.36 * tall, HAIR, tilt=0.3)
        if p.hat == "cap":
            c.ellipse(x, y - 0.45 * tall, wide * 1.08, tall * 0.62, HAT, tilt=0.3)
            if look > -0.5:
                reach = 0.75 * abs(turn) * wide
                spread = wide * (0.35 + 0.6 * abs(look)) + 0.4 * reach
                c.ellipse(x + turn * wide * 0.9, y - 0.2 * tall, spread, 0.13 * tall, HAT + 1)
        elif p.hat == "beanie":
            fold = lambda u, v: np.where(v > 0.68, np.uint8(HAT + 1), np.uint8(HAT))  # noqa: E731
            c.ellipse(x, y - 0.47 * tall, wide * 1.1, tall * 0.7, fold, tilt=0.3, power=2.6)
        elif p.hat == "brimmed":
            c.ellipse(x, y - 0.62 * tall, wide * 1.05, tall * 0.62, HAT, tilt=0.3, power=3.2)
            c.ellipse(x, y - 0.26 * tall, wide * 1.9, tall * 0.17, HAT + 1, tilt=0.3)
        if p.scarf:
            self.blob((0.0, 0.16), self.half(0.06, 0.06), 0.024, SCARF, contact=0.25, tilt=0.3, power=2.6)

    def face_dye(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        """Return skin, eyes, mouth, beard and hairline as the head's turn shows them."""
        p = self.p
        away = np.abs(wrap(np.arcsin(np.clip(u, -1, 1)) - self.face))
        dye = np.full(away.shape, SKIN, np.uint8)
        if p.beard:
            dye[(v > 0.64) & (away < 1.5)] = HAIR
        dye[(np.abs(v - 0.77) < 0.03) & (away < 0.3)] = SKIN + 1
        dye[(np.abs(v - 0.48) < 0.045) & (np.abs(away - 0.42) < 0.17)] = DARK
        if p.glasses:
            dye[(np.abs(v - 0.48) < 0.07) & (np.abs(away - 0.44) < 0.28)] = DARK
        if p.hair != "bald":
            # The hairline falls from the forehead to the nape; long hair reaches further forward.
            front, nape = {"short": (1.35, 0.62), "bob": (0.95, 1.1), "long": (1.0, 1.1)}.get(p.hair, (1.35, 0.72))
            dye[v < np.where(away > front, nape, 0.24 + 0.05 * away)] = HAIR
        return dye

    def hair_behind(self) -> None:
        p = self.p
        if p.hair == "long":
            half = self.half(0.06, 0.042) * p.head
            self.blob((0.0, 0.135, -0.025), half, 0.115, HAIR, 0.9, contact=0.2, tilt=0.3, power=3)
        elif p.hair == "bob":
            self.blob((0.0, 0.09, -0.012), self.half(0.062, 0.058) * p.head, 0.072, HAIR, 0.9, tilt=0.3, power=3)
        elif p.hair == "ponytail":
            tail = self.at(0.0, 0.05, -0.055), self.at(0.0, 0.19, -0.085), 0.018 * self.unit, 0.012 * self.unit
            self.canvas.contact(*tail, 0.2)
            self.canvas.tube(*tail, HAIR)

    def hood_down(self) -> None:
        if self.p.upper == "hoodie" and self.p.hat != "hood":
            self.blob((0.0, 0.178, -0.045), self.half(0.068, 0.04), 0.034, UPPER, 0.95, contact=0.3, tilt=0.5)

    def bag_dye(self, u: np.ndarray, v: np.ndarray) -> np.ndarray:
        return np.where((np.abs(v - 0.6) < 0.045) | (v < 0.1) | (np.abs(u) > 0.92), np.uint8(BAG + 1), np.uint8(BAG))

    def backpack(self) -> None:
        across, tall = self.half(self.p.shoulder * 0.8, 0.055), 0.075 + 0.8 * (self.p.bag_size - 0.03)
        place = (0.0, 0.195 + tall, -self.p.shoulder * 0.5 - 0.035)
        self.blob(place, across, tall, self.bag_dye, contact=0.3, tilt=0.3, power=4)

    def shoulder_bag(self) -> None:
        place, across = (self.p.bag_side * (self.p.hip + 0.03), 0.5), self.half(0.035, self.p.bag_size * 1.3)
        self.blob(place, across, self.p.bag_size, self.bag_dye, contact=0.3, tilt=0.3, power=4)
