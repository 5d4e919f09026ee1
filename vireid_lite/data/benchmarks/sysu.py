"""SYSU-MM01 in its official layout: `cam{1..6}/{identity:04d}/*.jpg` and `exp/{train,val,test}_id.txt`."""

from collections.abc import Sequence
from functools import cached_property
from itertools import combinations
from typing import ClassVar

import numpy as np

from vireid_lite.data.benchmarks import lists
from vireid_lite.data.benchmarks.lists import NUM_TRIALS, YES, Benchmark, draw_gallery, read_identities, records_in
from vireid_lite.data.records import Modality, Record, Trial
from vireid_lite.errors import InputError

INFRARED_CAMERAS = (3, 6)
VISIBLE_CAMERAS = {"all": (1, 2, 4, 5), "indoor": (1, 2)}
PERMUTATIONS = "exp/rand_perm_cam.mat"
AGW_DRAW = "draw='agw' with shot=1"


class SYSU(Benchmark):
    """SYSU-MM01 (Wu et al., ICCV 2017) with its official splits, searches and gallery draws, whatever the seed.

    Keyword Args:
        search: "all" draws the gallery from visible cameras 1, 2, 4, 5; "indoor" from 1 and 2.
        shot: gallery images per identity and camera, 1 or 10.
        draw: "agw", trial t drawn with Python's generator seeded t (AGW, data_manager.py:39-58), which is defined for
            one shot only, so that shot=10 with it is refused; or "official", the first `shot` entries of row t of
            `exp/rand_perm_cam.mat` (get_testing_set.m:40-47). The two are not comparable trial by trial.
        validation: True keeps SYSU's own 99 validation identities apart as `val`; False adds them to `train`, the 395
            identities on which published models are trained, and leaves `val` empty.
        num_trials: 1 to 10.

    Raises:
        InputError: as `Benchmark`, or for lists that share an identity.
    """

    name, title, protocol, default_query = "sysu", "SYSU-MM01", "sysu", Modality.INFRARED
    folders = tuple(f"cam{camera}" for camera in range(1, 7))
    choices: ClassVar = {
        **{"search": ("all", tuple(VISIBLE_CAMERAS)), "shot": (1, (1, 10)), "draw": ("agw", ("agw", "official"))},
        **{"validation": YES, "num_trials": NUM_TRIALS},
    }

    def _load(self, seed: int) -> None:
        if self.options["draw"] == "agw" and self.options["shot"] != 1:
            raise InputError("SYSU-MM01: AGW's draw is defined for shot=1 only; pass draw='official' for shot=10")
        listed = {split: f"exp/{split}_id.txt" for split in ("train", "val", "test")}
        self.identities = {split: read_identities("SYSU-MM01", self.root, path) for split, path in listed.items()}
        for one, other in combinations(listed, 2):
            if shared := set(self.identities[one]) & set(self.identities[other]):
                both = f"{listed[one]} and {listed[other]} both list identity {min(shared)}"
                raise InputError(f"SYSU-MM01: {both}; fetch the lists again")
        self.train, self.val = ([r for group in self._groups(split) for r in group] for split in ("train", "val"))
        if not self.options["validation"]:
            self.train, self.val = sorted(self.train + self.val, key=lambda record: record.identity), []
        if not self.train:
            raise InputError(
                f"SYSU-MM01: {self.root} has no image of a training identity; check --root or the download"
            )
        self.test_groups = self._groups("test")
        there = {group[0].identity for group in self.test_groups}
        self.left_out = lists.left_out(self.root, self.identities["test"], there, "cam[1-6]/*/*")

    def _groups(self, split: str) -> list[list[Record]]:
        """Return the images of each (identity, camera) that has any: identities ascending, then cameras, then names."""
        groups = [
            records_in(self.root, f"cam{camera}/{identity:04d}", identity, camera, Modality(camera in INFRARED_CAMERAS))
            for identity in self.identities[split]
            for camera in range(1, 7)
        ]
        return [group for group in groups if group]

    def trials(self, query_modality: Modality | None = None) -> list[Trial]:
        """Return `num_trials` trials that share their queries: every test image of the query modality.

        Args:
            query_modality: infrared (the default) is the official direction, with all images of cameras 3 and 6 as
                queries in both searches. Visible queries are NOT an official protocol: all visible images of the
                search's cameras against `shot` infrared images per identity and camera 3 and 6, drawn by the same rule.
        """
        direction = self.direction(query_modality)
        cameras = {Modality.VISIBLE: VISIBLE_CAMERAS[self.options["search"]], Modality.INFRARED: INFRARED_CAMERAS}
        query = [r for group in self.test_groups if group[0].camera in cameras[direction] for r in group]
        groups = [group for group in self.test_groups if group[0].camera in cameras[direction.other]]
        if not (query and groups):
            raise InputError(f"SYSU-MM01: {self.root} lacks visible or infrared test images; check the download")
        draw = draw_gallery if self.options["draw"] == "agw" else self._official_gallery
        return [Trial(query, draw(groups, trial)) for trial in range(self.options["num_trials"])]

    @cached_property
    def _permutations(self) -> np.ndarray:
        """`rand_perm_cam` by camera, an object array: [camera - 1].ravel()[identity - 1] is (10, n), 1-based."""
        from scipy.io import loadmat  # nothing else here needs it

        try:
            with (self.root / PERMUTATIONS).open("rb") as file:
                return loadmat(file)["rand_perm_cam"].ravel()
        except FileNotFoundError:
            where = f"{PERMUTATIONS} is not under {self.root}"
            raise InputError(f"SYSU-MM01: {where}; fetch it, or pass {AGW_DRAW}") from None
        except Exception as error:  # scipy's reader raises whatever a broken file makes it stumble over
            problem = f"{PERMUTATIONS} under {self.root} is not readable ({type(error).__name__})"
            raise InputError(f"SYSU-MM01: {problem}; fetch it again") from None

    def _official_gallery(self, groups: Sequence[Sequence[Record]], trial: int) -> list[Record]:
        cells, shot, gallery = self._permutations, self.options["shot"], []
        for group in groups:
            camera, identity = group[0].camera, group[0].identity
            try:
                places = list(cells[camera - 1].ravel()[identity - 1][trial])
                fits = sorted(places) == list(range(1, len(group) + 1))
            except (AttributeError, IndexError, TypeError, ValueError):
                places, fits = [], False
            if not fits or len(group) < shot:
                found = f"{len(places)} images of cam{camera}/{identity:04d}, which holds {len(group)} (shot={shot})"
                remedy = f"the copy is incomplete, or pass {AGW_DRAW}"
                raise InputError(f"SYSU-MM01: {PERMUTATIONS} permutes {found}; {remedy}")
            gallery += [group[int(place) - 1] for place in places[:shot]]
        return gallery
