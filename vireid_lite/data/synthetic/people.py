"""SyntheticVI: procedurally rendered pedestrians seen by visible and infrared cameras, as many as one asks for."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property, lru_cache
from itertools import count

import numpy as np

from vireid_lite.data.records import Dataset, Modality, Record
from vireid_lite.data.synthetic.figure import SPECTRA, Person, Shot
from vireid_lite.data.synthetic.paint import dyes
from vireid_lite.data.synthetic.render import render
from vireid_lite.data.synthetic.scene import draw_scene
from vireid_lite.errors import MANY, InputError, check_choice, check_flag, check_number, whole

# SYSU-MM01's numbering of cameras.
CAMERAS = {Modality.VISIBLE: (1, 2, 4, 5), Modality.INFRARED: (3, 6)}
SCENE_OF = {1: "corridor", 2: "hall", 3: "corridor", 4: "street", 5: "garden", 6: "garden"}
# What people wear, and how many in a hundred; the first of each is what all wear when similarity is 1.
WARDROBE = {
    "upper": {"shirt": 20, "tee": 20, "vest": 6, "jacket": 18, "coat": 13, "dress": 9, "hoodie": 14},
    "lower": {"trousers": 40, "wide trousers": 15, "shorts": 17, "skirt": 15, "long skirt": 13},
    "hat": {"none": 58, "cap": 14, "beanie": 11, "brimmed": 9, "hood": 8},
    "hair": {"short": 34, "bald": 8, "bob": 13, "long": 18, "ponytail": 11, "bun": 7, "afro": 9},
    "bag": {"none": 36, "backpack": 26, "shoulder bag": 20, "handbag": 18},
    "pattern": {
        **{"plain": 24, "hoops": 11, "stripes": 7, "checks": 7, "yoke": 8, "band": 9},
        **{"halves": 5, "print": 14, "sash": 5, "sides": 6, "dots": 4},
    },
    "leg pattern": {"plain": 60, "side stripe": 13, "knees": 8, "checks": 4, "cuffs": 9, "stripes": 6},
}

# One independent stream of random numbers for each kind of draw.
PERSON, CAMERA, SHOT, SCENE, PATTERN = 1, 2, 3, 4, 5


@dataclass(frozen=True)
class Knobs:
    """How hard the data are: numbers from 0 up to a limit in KNOB_LIMITS; the defaults are those of "easy"."""

    similarity: float = 0.0  #: how alike people are, 0 all dress and are built apart, 1 all are the same person
    pattern_loss: float = 0.1  #: share of patterns whose two dyes look the same in the infrared
    reflectance_shift: float = 0.6  #: 0 where infrared reflectance follows visible brightness, 1 where it is apart
    pose_spread: float = 0.5  #: width of stride, arm swing, gestures and lean
    view_spread: float = 0.5  #: how far the view strays from straight front or back, 0 not at all, 1 to either side
    back_views: float = 0.3  #: share of images taken from behind
    crop_jitter: float = 0.2  #: how badly the box fits, shift and scale; 1 is a fifth of the height
    clutter: float = 0.4  #: how busy the cameras' scenes are
    illumination: float = 0.4  #: half range of exposure, in stops
    colour_cast: float = 0.15  #: how far apart the visible cameras' white balances are
    blur: float = 0.8  #: largest blur, as a standard deviation in pixels at 128 rows
    noise: float = 0.03  #: largest sensor noise, as a standard deviation on a scale of 1
    occlusion: float = 0.05  #: share of images in which something stands before the person


KNOB_LIMITS = {field.name: 1.0 for field in fields(Knobs)} | {"illumination": 3.0, "blur": 4.0, "noise": 0.3}
# Both chosen on clean validation accuracy alone (lite victim, 60 people), never on how an attack fares.
DIFFICULTIES = {
    "easy": Knobs(),
    "hard": Knobs(
        **{"similarity": 0.1, "pattern_loss": 0.2, "reflectance_shift": 0.75, "pose_spread": 0.7, "view_spread": 0.7},
        **{"back_views": 0.4, "crop_jitter": 0.3, "clutter": 0.7, "illumination": 0.6, "colour_cast": 0.2},
        **{"blur": 1.0, "noise": 0.04, "occlusion": 0.1},
    ),
}


def stream(*key: int) -> np.random.Generator:
    """Return the random numbers that belong to a key, independent of every other key."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))


@lru_cache(maxsize=4096)
def draw_person(seed: int, identity: int, similarity: float, pattern_loss: float, reflectance_shift: float) -> Person:
    """Draw what one identity wears and how it is built; nothing of this depends on a modality or an image."""
    rng = stream(seed, PERSON, identity)

    def pick(what: str) -> str:
        names, shares = tuple(WARDROBE[what]), np.cumsum(list(WARDROBE[what].values()))
        choice = names[int(np.searchsorted(shares / shares[-1], rng.random()))]
        # The first name is what everybody wears when people are alike.
        return names[0] if rng.random() < similarity else choice

    def vary(middle: float, half_range: float) -> float:
        return middle + (1 - similarity) * half_range * rng.uniform(-1, 1)

    def maybe(probability: float) -> bool:
        return bool(rng.random() < probability * (1 - similarity))

    build = rng.uniform(-1, 1) * (1 - similarity)
    upper, lower, hat = pick("upper"), pick("lower"), pick("hat")
    hat = "none" if hat == "hood" and upper not in ("hoodie", "jacket", "coat") else hat
    sleeve = {"tee": 0.3, "vest": 0.0, "dress": (0.0, 0.28, 1.0)[rng.integers(3)]}.get(upper, 1.0)
    if upper == "shirt" and maybe(0.25):
        sleeve = 0.6
    hem = {"tee": 0.5, "vest": 0.49, "shirt": 0.5, "hoodie": 0.52, "jacket": 0.5}.get(upper, 0.0)
    hem = vary(hem, 0.025) if hem else vary(0.69, 0.07)
    visible, infrared, heat = dyes(rng, similarity, pattern_loss, reflectance_shift, upper)
    body = {"stature": vary(1.0, 0.04), "shoulder": vary(0.112, 0.012) + 0.012 * build}
    body |= {"waist": vary(0.078, 0.008) + 0.020 * build, "hip": vary(0.086, 0.012) + 0.010 * build}
    body |= {"depth": vary(0.68, 0.07) + 0.08 * build, "arm": vary(0.026, 0.002) + 0.005 * build}
    body |= {"leg": vary(0.051, 0.004) + 0.009 * build, "crotch": vary(0.505, 0.022)}
    head = {"head": vary(1.0, 0.08), "hair": pick("hair"), "beard": maybe(0.15), "glasses": maybe(0.12), "hat": hat}
    dress = {"upper": upper, "hem": hem, "sleeve": sleeve}
    dress["sleeve_dye"] = int(rng.choice(3, p=(0.45, 0.25, 0.3))) if maybe(1.0) else 0
    dress["opening"] = rng.uniform(0.25, 0.6) if upper in ("jacket", "coat") and maybe(0.65) else 0.0
    dress |= {"pattern": pick("pattern"), "repeats": rng.uniform(2.2, 6.5), "phase": rng.random()}
    dress |= {"pattern_back": maybe(0.35), "trim": maybe(0.35), "lower": lower}
    hems = {"shorts": vary(0.4, 0.12), "skirt": vary(0.4, 0.13), "long skirt": vary(0.85, 0.12)}
    dress |= {"lower_hem": hems.get(lower, 1.0), "leg_pattern": pick("leg pattern")}
    dress |= {"cut": {"wide trousers": 1.0}.get(lower, vary(0.4, 0.3))}
    dress["boots"] = rng.uniform(0.35, 0.85) if maybe(0.25) else 0.0
    bag = {"bag": pick("bag"), "bag_side": 1 if rng.random() < 0.5 else -1, "bag_size": vary(0.062, 0.016)}
    scarf = maybe(0.15)
    return Person(**body, **head, **dress, **bag, scarf=scarf, visible=visible, infrared=infrared, heat=heat)


def draw_shot(rng: np.random.Generator, modality: Modality, knobs: Knobs) -> Shot:
    """Draw everything that one image does not share with any other: pose, view, framing, light and faults."""

    def spread(half_range: float) -> float:
        return half_range * rng.uniform(-1, 1)

    pose, jitter = knobs.pose_spread, 0.2 * knobs.crop_jitter
    yaw = (math.pi if rng.random() < knobs.back_views else 0.0) + spread(knobs.view_spread * math.pi / 2)
    walking = rng.random() < 0.75
    gestures = {"swing": 1 - 0.3 * pose, "phone": 0.15 * pose, "pocket": 0.15 * pose}
    stops = spread(knobs.illumination)
    if modality == Modality.VISIBLE:
        light = (spread(0.55), -0.2, rng.uniform(0.5, 0.8))
        ambient, exposure, hotspot = 0.3, 1.15, 0.0
    else:
        # The lamp sits beside the lens: no side shading, bright middle, dark rim.
        light = (spread(0.1), 0.0, 0.85)
        ambient, exposure, hotspot = 0.15, rng.uniform(1.0, 1.4), rng.uniform(0.3, 1.5)
    occluder = None
    if rng.random() < knobs.occlusion:
        side = 1 if rng.random() < 0.5 else -1
        place, half = side * rng.uniform(0.1, 0.24), rng.uniform(0.03, 0.09)
        occluder = (place, rng.uniform(0.05, 0.7), half, rng.uniform(0.03, 0.5), rng.choice((0.0, 0.3)))
    step = {"yaw": yaw, "phase": rng.uniform(0, 2 * math.pi)}
    step["stride"] = 0.15 + 0.32 * pose * rng.random() if walking else 0.06 * rng.random()
    step["swing"] = 0.15 + 0.6 * pose * rng.random() if walking else 0.1 * rng.random()
    step["elbow"] = (rng.uniform(0.1, 0.2 + 0.6 * pose), rng.uniform(0.1, 0.2 + 0.6 * pose))
    step["arm_pose"] = tuple(str(rng.choice(list(gestures), p=list(gestures.values()))) for _ in range(2))
    step["spread"] = rng.uniform(0.08, 0.14 + 0.2 * pose)
    step |= {"lean": spread(0.12 * pose), "head_turn": spread(0.8 * pose)}
    frame = {"scale": 0.88 * (1 + spread(jitter)), "stretch": 1.16 * (1 + spread(jitter))}
    frame |= {"shift": spread(jitter * 0.6), "foot": 0.955 + spread(jitter * 0.5)}
    frame |= {"pan": (rng.random(), rng.random()), "mirror": bool(rng.random() < 0.5)}
    seen = {"exposure": exposure * 2.0**stops, "scene_exposure": 2.0 ** spread(0.5 * knobs.illumination)}
    seen |= {"light": light, "ambient": ambient, "hotspot": (rng.uniform(0.3, 0.6), spread(0.1), hotspot)}
    seen |= {"folds": (rng.random(), rng.random()), "blur": knobs.blur * rng.random()}
    seen |= {"noise": knobs.noise * rng.uniform(0.4, 1.0), "noise_seed": int(rng.integers(1 << 62))}
    return Shot(**step, **frame, **seen, occluder=occluder)


@lru_cache(maxsize=12)
def camera_scene(seed: int, camera: int, spectrum: str, height: int, clutter: float, cast: float) -> tuple:
    """Return one camera's panorama and white balance."""
    rng = stream(seed, SCENE, camera)
    scene = draw_scene(rng, SCENE_OF[camera], spectrum, height, clutter)
    balance = 2.0 ** (cast * rng.uniform(-1, 1, 3) * 1.5) if spectrum == "visible" else np.ones(3)
    return scene, balance.astype(np.float32)


class SyntheticVI(Dataset):
    """Rendered people, each in `images_per_modality` visible and as many infrared images, in the splits of `Dataset`.

    An image depends on (seed, identity, modality, its number within the modality), the size and the options alone.

    Args:
        num_identities: of training; those of the other splits come on top, the same people whatever the other counts
            are.
        seed: which population; another seed is other people before other cameras.
        difficulty: a name in DIFFICULTIES.
        thermal: infrared shows heat (far infrared) rather than reflectance.
        without: names of patterns that nobody wears. Who would wear one wears another, drawn by the shares of the
            rest; all else about them, and all others, stay as they are.
        knobs: any field of Knobs, overriding the difficulty.

    Raises:
        InputError: on an unknown difficulty or knob, a knob out of range, or too few identities or images.
    """

    def __init__(
        self,
        /,
        num_identities: int = 200,
        images_per_modality: int = 6,
        size: tuple[int, int] = (128, 64),
        seed: int = 0,
        *,
        difficulty: str = "easy",
        thermal: bool = False,
        val_identities: int = 30,
        tuning_identities: int = 0,
        test_identities: int = 60,
        traffic_identities: int = 0,
        without: Sequence[str] = (),
        **knobs: float,
    ) -> None:
        options = {"num_identities": num_identities, "val_identities": val_identities}
        options |= {"test_identities": test_identities, "tuning_identities": tuning_identities}
        options["traffic_identities"] = traffic_identities
        for name, people in options.items():
            least = 0 if name in ("tuning_identities", "traffic_identities") else 2
            whole("synthetic", name, people, least, MANY, int)
        most = 10_000_000 // sum(options.values())
        whole("synthetic", "images_per_modality", images_per_modality, 1, most, int)
        seed = whole("synthetic", "seed", seed)
        check_flag("synthetic", "thermal", thermal)
        check_choice("synthetic", "difficulty", difficulty, DIFFICULTIES)
        options |= {"images_per_modality": images_per_modality, "seed": seed}
        options |= {"difficulty": difficulty, "thermal": thermal}
        if not isinstance(without, list | tuple) or not set(without) < set(WARDROBE["pattern"]):
            known = f"some, not all, of {', '.join(WARDROBE['pattern'])}"
            raise InputError(f"synthetic: without must be a list of patterns, {known}; got {without!r}")
        for name, value in knobs.items():
            check_choice("synthetic", "option", name, {**options, "without": (), **KNOB_LIMITS})
            check_number("synthetic", name, value, 0, KNOB_LIMITS[name])
        self.knobs = replace(DIFFICULTIES[difficulty], **{name: float(value) for name, value in knobs.items()})
        self.seed, self.thermal, self.images_per_modality = seed, thermal, images_per_modality
        self.without = sorted(set(without))
        options |= {"without": self.without} if without else {}  # unsaid, it changes no key
        super().__init__("synthetic", None, size, {**options, "knobs": asdict(self.knobs)})
        if self.size[1] > 4 * self.size[0]:
            raise InputError(f"synthetic: size must be (height, width), at most four times as wide as high; got {size}")
        places = count(0)
        self.train = list(self._records(0, num_identities, places))
        self.val = list(self._records(1_000_000, val_identities, places))
        self.test = list(self._records(2_000_000, test_identities, places))
        self.tuning = list(self._records(3_000_000, tuning_identities, places))

    @cached_property
    def traffic(self) -> list[Record]:
        """The images of the `traffic_identities`; made when asked for, as they are many."""
        numbered = len(self.train) + len(self.val) + len(self.test) + len(self.tuning)
        return list(self._records(4_000_000, self.options["traffic_identities"], count(numbered)))

    def _records(self, first: int, people: int, places: Iterator[int]) -> Iterator[Record]:
        for identity in range(first, first + people):
            for modality, cameras in CAMERAS.items():
                for draw in stream(self.seed, CAMERA, identity, modality).random(self.images_per_modality):
                    yield Record(next(places), identity, cameras[int(draw * len(cameras))], modality)

    def who(self, record: Record) -> str:
        """Return the population and the number in it."""
        return f"{self.seed} {record.identity}"

    def shot(self, record: Record) -> Shot:
        """Return the pose, view, framing, light and faults of one record's image."""
        key = record.identity, record.modality, record.source % self.images_per_modality
        return draw_shot(stream(self.seed, SHOT, *key), record.modality, self.knobs)

    def person(self, identity: int) -> Person:
        """Return what one identity wears and how it is built, such as its `pattern`: all that `Person` holds."""
        knobs = self.knobs
        person = draw_person(self.seed, identity, knobs.similarity, knobs.pattern_loss, knobs.reflectance_shift)
        if person.pattern not in self.without:
            return person
        shares = {name: share for name, share in WARDROBE["pattern"].items() if name not in self.without}
        chances = np.array(list(shares.values())) / sum(shares.values())
        return person._replace(pattern=str(stream(self.seed, PATTERN, identity).choice(list(shares), p=chances)))

    def read(self, record: Record, pattern: str | None = None) -> np.ndarray:
        """Render one crop as uint8, shape (height, width, 3); infrared has three equal channels.

        pattern: what the person is to wear instead of its own, all else equal, such as "hoops".
        """
        person = self.person(record.identity)
        if pattern is not None:
            check_choice("synthetic", "pattern", pattern, WARDROBE["pattern"])
            person = person._replace(pattern=pattern)
        spectrum = SPECTRA[0 if record.modality == Modality.VISIBLE else 1 + self.thermal]
        busy, cast = self.knobs.clutter, self.knobs.colour_cast
        scene, cast = camera_scene(self.seed, record.camera, spectrum, self.size[0], busy, cast)
        return render(person, self.shot(record), scene, cast, spectrum, self.size)
