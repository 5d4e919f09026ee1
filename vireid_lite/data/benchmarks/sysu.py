"""SYSU-MM01 in its official layout: `cam{1..6}/{identity:04d}/*.jpg` and `exp/{train,val,test}_id.txt`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np

from vireid_lite.data.benchmarks.lists import (
    draw_gallery,
    image_names,
    open_root,
    query_direction,
    read_identities,
    require,
    require_folders,
)
from vireid_lite.data.records import Dataset, Modality, Record, Trial
from vireid_lite.errors import InputError

INFRARED_CAMERAS = (3, 6)

VISIBLE_CAMERAS = {"all": (1, 2, 4, 5), "indoor": (1, 2)}

PERMUTATIONS = "exp/rand_perm_cam.mat"


class SYSU(Dataset):
    """SYSU-MM01 (Wu et al., ICCV 2017) with its official splits, searches and gallery draws.

    root: the folder that holds `cam1` to `cam6` and `exp`. size: (height, width) in pixels of a crop.
    seed: not used; every split and draw of SYSU-MM01 is fixed.
    search: "all" draws the gallery from visible cameras 1, 2, 4, 5; "indoor" from 1 and 2.
    shot: gallery images per identity and camera, 1 or 10.
    draw: "agw", trial t drawn with Python's generator seeded t (AGW, data_manager.py:39-58), which is defined for one
        shot only, so that shot=10 with it is refused; or "official", the first `shot` entries of row t of
        `exp/rand_perm_cam.mat` (get_testing_set.m:40-47). The two are not comparable trial by trial.
    validation: True keeps SYSU's own 99 validation identities apart as `val`; False adds them to `train`, the 395
        identities on which published models are trained, and leaves `val` empty.
    num_trials: 1 to 10.
    Raises InputError for an unknown option, a missing root, camera folder or list, a malformed list, or lists that
    share an identity.
    """

    protocol = "sysu"
    default_query = Modality.INFRARED

    def __init__(
        self,
        root: str | Path | None,
        *,
        size: tuple[int, int] = (288, 144),
        seed: int = 0,
        search: str = "all",
        shot: int = 1,
        draw: str = "agw",
        validation: bool = True,
        num_trials: int = 10,
    ) -> None:
        require("SYSU-MM01", "search", search, tuple(VISIBLE_CAMERAS))
        require("SYSU-MM01", "shot", shot, (1, 10))
        require("SYSU-MM01", "draw", draw, ("agw", "official"))
        require("SYSU-MM01", "validation", validation, (False, True))
        require("SYSU-MM01", "num_trials", num_trials, range(1, 11))
        if draw == "agw" and shot != 1:
            raise InputError("SYSU-MM01: AGW's draw is defined for shot=1 only; pass draw='official' for shot=10")
        options = {"search": search, "shot": shot, "draw": draw, "validation": validation, "num_trials": num_trials}
        folder = open_root("SYSU-MM01", root)
        super().__init__("sysu", folder, size, options)
        require_folders("SYSU-MM01", folder, (f"cam{camera}" for camera in range(1, 7)))
        listings = {split: f"exp/{split}_id.txt" for split in ("train", "val", "test")}
        self.identities = {split: read_identities("SYSU-MM01", folder, path) for split, path in listings.items()}
        for one, other in combinations(listings, 2):
            if shared := set(self.identities[one]) & set(self.identities[other]):
                raise InputError(
                    f"SYSU-MM01: {listings[one]} and {listings[other]} both list identity {min(shared)}; "
                    "fetch the lists again"
                )
        self.train = [record for group in self._groups("train") for record in group]
        self.val = [record for group in self._groups("val") for record in group]
        if not validation:
            self.train, self.val = sorted(self.train + self.val, key=lambda record: record.identity), []
        if not self.train:
            raise InputError(f"SYSU-MM01: {root} has no image of a training identity; check --root or the download")
        self.test_groups = self._groups("test")
        self._permutations: np.ndarray | None = None

    def _groups(self, split: str) -> list[list[Record]]:
        """Return the images of each (identity, camera) that has any: identities ascending, then cameras, then names."""
        groups = []
        for identity in self.identities[split]:
            for camera in range(1, 7):
                folder = f"cam{camera}/{identity:04d}"
                modality = Modality.INFRARED if camera in INFRARED_CAMERAS else Modality.VISIBLE
                names = image_names(self.root / folder)
                groups.append([Record(f"{folder}/{name}", identity, camera, modality) for name in names])
        return [group for group in groups if group]

    def trials(self, query_modality: Modality | None = None) -> list[Trial]:
        """Return `num_trials` trials that share their queries: every test image of the query modality.

        query_modality: infrared (the default) is the official direction, with all images of cameras 3 and 6 as
            queries in both searches. Visible queries are NOT an official protocol: all visible images of the search's
            cameras against `shot` infrared images per identity and camera 3 and 6, drawn by the same rule.
        """
        direction = query_direction(self, query_modality)
        cameras = {Modality.VISIBLE: VISIBLE_CAMERAS[self.options["search"]], Modality.INFRARED: INFRARED_CAMERAS}
        query = [r for group in self.test_groups if group[0].camera in cameras[direction] for r in group]
        groups = [group for group in self.test_groups if group[0].camera in cameras[direction.other]]
        if not (query and groups):
            raise InputError(f"SYSU-MM01: {self.root} lacks visible or infrared test images; check the download")
        draw = draw_gallery if self.options["draw"] == "agw" else self._official_gallery
        return [Trial(query, draw(groups, trial)) for trial in range(self.options["num_trials"])]

    def _official_gallery(self, groups: Sequence[Sequence[Record]], trial: int) -> list[Record]:
        if self._permutations is None:
            self._permutations = read_permutations(self.root)
        shot, gallery = self.options["shot"], []
        for group in groups:
            camera, identity = group[0].camera, group[0].identity
            try:
                rows = self._permutations[camera - 1].ravel()[identity - 1]
                chosen = [int(position) - 1 for position in rows[trial, :shot]]
            except (IndexError, TypeError, ValueError, AttributeError):
                chosen, rows = [], np.empty((0, 0))
            if rows.shape[1] != len(group) or len(chosen) < shot or not all(0 <= i < len(group) for i in chosen):
                raise InputError(
                    f"SYSU-MM01: {PERMUTATIONS} permutes {rows.shape[1]} images of cam{camera}/{identity:04d}, which "
                    f"holds {len(group)} (shot={shot}); the copy is incomplete, or pass draw='agw'"
                )
            gallery += [group[i] for i in chosen]
        return gallery


def read_permutations(root: Path) -> np.ndarray:
    """Return `rand_perm_cam` by camera, an object array: [camera - 1].ravel()[identity - 1] is (10, n), 1-based."""
    try:
        from scipy.io import loadmat  # comes with scikit-learn; nothing else here needs it
    except ImportError:
        raise InputError("SYSU-MM01: draw='official' needs scipy; run pip install scipy, or pass draw='agw'") from None
    try:
        with (root / PERMUTATIONS).open("rb") as file:
            return loadmat(file)["rand_perm_cam"].ravel()
    except FileNotFoundError:
        raise InputError(f"SYSU-MM01: {PERMUTATIONS} is not under {root}; fetch it, or pass draw='agw'") from None
    except Exception as error:  # scipy's reader raises whatever a broken file makes it stumble over
        raise InputError(
            f"SYSU-MM01: {PERMUTATIONS} under {root} is not readable ({type(error).__name__}); fetch it again"
        ) from None
