"""LLCM in its official layout: `test_{vis,nir}/cam{k}/{identity:04d}/` and `idx/{train_vis,train_nir,test_id}.txt`."""

import re
from pathlib import Path
from typing import ClassVar

from vireid_lite.data.benchmarks import lists
from vireid_lite.data.records import Modality, Record, Trial
from vireid_lite.errors import InputError

SPECTRA = {"vis": Modality.VISIBLE, "nir": Modality.INFRARED}
CAMERAS = {"vis": range(1, 10), "nir": (1, 2, 4, 5, 6, 7, 8, 9)}  # camera 3 has no NIR images (data_manager.py:72-74)


class LLCM(lists.Benchmark):
    """LLCM (Zhang and Wang, CVPR 2023): all images of one modality against one per identity and camera of the other.

    Training labels and test folder numbers overlap, so a test identity is its folder's number + 10,000.

    Keyword Args:
        validation: True holds a tenth of the training identities, drawn from `seed`, out as `val`.
        official_vis2ir: what a visible query means. False: true visible-to-infrared, all visible images are queries,
            the infrared gallery is drawn. True: what the authors' code runs under that name (DEEN/test.py:222-234
            transposes): the drawn infrared images are the QUERIES, ranked against all visible images; for comparison
            with their numbers.
        num_trials: 1 to 10; trial t draws its gallery with seed t.
    """

    name, title, protocol = "llcm", "LLCM", "llcm"
    default_query = Modality.INFRARED  # the setting the authors' code has switched on (DEEN/test.py:61)
    folders = ("test_vis", "test_nir")
    choices: ClassVar = {"validation": lists.NO, "official_vis2ir": lists.NO, "num_trials": lists.NUM_TRIALS}

    def _load(self, seed: int) -> None:
        self.train = [record for spectrum in SPECTRA for record in self._read_train(spectrum)]
        lists.check_people(self.title, self.train)
        self.test_groups = read_test_groups(self.root)
        there = {r.identity - lists.TEST_IDENTITY_OFFSET for g in self.test_groups.values() for (r, *_) in g}
        listed = lists.read_identities("LLCM", self.root, "idx/test_id.txt")
        self.left_out = lists.left_out(self.root, listed, there, "test_*/cam*/*/*")
        if self.options["validation"]:
            self.hold_out(seed)

    def _read_train(self, spectrum: str) -> list[Record]:
        """Return the records of a list; a path names its camera by a folder `cam1`, or `_c01_` in the file's name."""
        records = []
        for where, path, label in lists.read_list("LLCM", self.root, f"idx/train_{spectrum}.txt"):
            camera = re.search(r"(?:^|/)cam(\d+)/", path) or re.search(r"(?:^|_|/)c(\d+)(?=[_.])[^/]*$", path)
            if camera is None:
                found = f"{where} lists {path}, which names no camera (a folder cam1, or _c01_ in the file's name)"
                raise InputError(f"LLCM: {found}; restore the official names")
            records.append(Record(path, label, int(camera[1]), SPECTRA[spectrum]))
        return records

    def trials(self, query_modality: Modality | None = None) -> list[Trial]:
        """Return `num_trials` trials; infrared queries by default; for visible ones see `official_vis2ir`."""
        direction = self.direction(query_modality)
        every = [record for group in self.test_groups[direction] for record in group]
        drawn = self.test_groups[direction.other]
        if not (every and drawn):
            raise InputError(f"LLCM: {self.root} lacks visible or infrared test images; check the download")
        swapped = direction == Modality.VISIBLE and self.options["official_vis2ir"]
        galleries = [lists.draw_gallery(drawn, trial) for trial in range(self.options["num_trials"])]
        return [Trial(gallery, every) if swapped else Trial(every, gallery) for gallery in galleries]


def read_test_groups(root: Path) -> dict[Modality, list[list[Record]]]:
    """Return, per modality, the images of each test (identity, camera): identities ascending, cameras, then names."""
    groups: dict[Modality, list[list[Record]]] = {modality: [] for modality in Modality}
    for number in lists.read_identities("LLCM", root, "idx/test_id.txt"):
        for spectrum, modality in SPECTRA.items():
            for camera in CAMERAS[spectrum]:
                folder = f"test_{spectrum}/cam{camera}/{number:04d}"
                if group := lists.records_in(root, folder, number + lists.TEST_IDENTITY_OFFSET, camera, modality):
                    groups[modality].append(group)
    return groups
