"""LLCM in its official layout: `test_{vis,nir}/cam{k}/{identity:04d}/` and `idx/{train_vis,train_nir,test_id}.txt`."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath

from vireid_lite.data.benchmarks.lists import (
    TEST_IDENTITY_OFFSET,
    draw_gallery,
    hold_out,
    image_names,
    open_root,
    query_direction,
    read_identities,
    read_list,
    require,
    require_folders,
)
from vireid_lite.data.records import Dataset, Modality, Record, Trial
from vireid_lite.errors import InputError

SPECTRA = {"vis": Modality.VISIBLE, "nir": Modality.INFRARED}

CAMERAS = {"vis": range(1, 10), "nir": (1, 2, 4, 5, 6, 7, 8, 9)}  # camera 3 has no NIR images (data_manager.py:72-74)


class LLCM(Dataset):
    """LLCM (Zhang and Wang, CVPR 2023): all images of one modality against one per identity and camera of the other.

    Training labels and test folder numbers overlap, so a test identity is its folder's number + 10,000.

    root: the folder that holds `idx`, `test_vis` and `test_nir`. size: (height, width) in pixels of a crop.
    validation: True holds a tenth of the training identities, drawn from `seed`, out as `val`.
    official_vis2ir: what a visible query means. False: true visible-to-infrared, all visible images are queries, the
        infrared gallery is drawn. True: what the authors' code runs under that name (DEEN/test.py:222-234 transposes):
        the drawn infrared images are the QUERIES, ranked against all visible images; for comparison with their numbers.
    num_trials: 1 to 10; trial t draws its gallery with seed t.
    Raises InputError for an unknown option, a missing root, folder or list, a malformed line, or a listed file that is
    absent or climbs out of the root.
    """

    protocol = "llcm"
    default_query = Modality.INFRARED  # the setting the authors' code has switched on (DEEN/test.py:61)

    def __init__(
        self,
        root: str | Path | None,
        *,
        size: tuple[int, int] = (288, 144),
        seed: int = 0,
        validation: bool = False,
        official_vis2ir: bool = False,
        num_trials: int = 10,
    ) -> None:
        require("LLCM", "validation", validation, (False, True))
        require("LLCM", "official_vis2ir", official_vis2ir, (False, True))
        require("LLCM", "num_trials", num_trials, range(1, 11))
        options = {"validation": validation, "official_vis2ir": official_vis2ir, "num_trials": num_trials}
        folder = open_root("LLCM", root)
        super().__init__("llcm", folder, size, options | ({"seed": seed} if validation else {}))
        require_folders("LLCM", folder, (f"test_{spectrum}" for spectrum in SPECTRA))
        self.train = [record for spectrum in SPECTRA for record in self._read_train(spectrum)]
        self.test_groups = read_test_groups(folder)
        if validation:
            self.train, self.val = hold_out("LLCM", self.train, seed)

    def _read_train(self, spectrum: str) -> list[Record]:
        listing, records = f"idx/train_{spectrum}.txt", []
        for entry in read_list("LLCM", self.root, listing):
            camera = camera_of(entry.path)
            if camera is None:
                raise InputError(
                    f"LLCM: {listing} line {entry.line} lists {entry.path}, which names no camera "
                    "(a folder cam1, or _c01_ in the file's name); restore the official names"
                )
            records.append(Record(entry.path, entry.label, camera, SPECTRA[spectrum]))
        return records

    def trials(self, query_modality: Modality | None = None) -> list[Trial]:
        """Return `num_trials` trials; infrared queries by default; for visible ones see `official_vis2ir`."""
        direction = query_direction(self, query_modality)
        every = [record for group in self.test_groups[direction] for record in group]
        drawn = self.test_groups[direction.other]
        if not (every and drawn):
            raise InputError(f"LLCM: {self.root} lacks visible or infrared test images; check the download")
        swapped = direction == Modality.VISIBLE and self.options["official_vis2ir"]
        galleries = [draw_gallery(drawn, trial) for trial in range(self.options["num_trials"])]
        return [Trial(gallery, every) if swapped else Trial(every, gallery) for gallery in galleries]


def camera_of(path: str) -> int | None:
    """Return the camera a training file's path names, by a folder `cam1` or by `_c01_` in the file's name."""
    parts = PurePosixPath(path).parts
    for part in parts[:-1]:
        if match := re.fullmatch(r"cam(\d+)", part):
            return int(match[1])
    match = re.search(r"(?:^|_)c(\d+)(?=[_.])", parts[-1])
    return int(match[1]) if match else None


def read_test_groups(root: Path) -> dict[Modality, list[list[Record]]]:
    """Return, per modality, the images of each test (identity, camera): identities ascending, cameras, then names."""
    groups: dict[Modality, list[list[Record]]] = {modality: [] for modality in SPECTRA.values()}
    for identity in read_identities("LLCM", root, "idx/test_id.txt"):
        for spectrum, modality in SPECTRA.items():
            for camera in CAMERAS[spectrum]:
                folder = f"test_{spectrum}/cam{camera}/{identity:04d}"
                number = identity + TEST_IDENTITY_OFFSET
                group = [Record(f"{folder}/{name}", number, camera, modality) for name in image_names(root / folder)]
                groups[modality] += [group] if group else []
    return groups
