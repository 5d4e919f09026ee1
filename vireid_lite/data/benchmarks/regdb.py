"""RegDB in its official layout: `Visible/`, `Thermal/` and `idx/{train,test}_{visible,thermal}_{1..10}.txt`."""

from __future__ import annotations

from pathlib import Path

from vireid_lite.data.benchmarks.lists import (
    TEST_IDENTITY_OFFSET,
    hold_out,
    open_root,
    query_direction,
    read_list,
    require,
)
from vireid_lite.data.records import Dataset, Modality, Record, Trial, all_against_all
from vireid_lite.errors import InputError

SPECTRA = {"visible": Modality.VISIBLE, "thermal": Modality.INFRARED}


class RegDB(Dataset):
    """RegDB (Nguyen et al., Sensors 2017): one of its ten splits, every query against the whole other modality.

    A published RegDB number is the mean over ten splits, each with a model of its own; a split has a single trial.
    Labels run from 0 in both the training and the test lists but name different people, so a test identity is its
    label + 10,000. Visible images are camera 1, thermal ones camera 2.

    root: the folder that holds `Visible`, `Thermal` and `idx`. size: (height, width) in pixels of a crop.
    split: 1 to 10. validation: True holds a tenth of the training identities, drawn from `seed`, out as `val`.
    Raises InputError for an unknown option, a missing root or list, a malformed line, a listed file that is absent or
    climbs out of the root, or a file that is listed for both training and test.
    """

    def __init__(
        self,
        root: str | Path | None,
        *,
        size: tuple[int, int] = (288, 144),
        seed: int = 0,
        split: int = 1,
        validation: bool = False,
    ) -> None:
        require("RegDB", "split", split, range(1, 11))
        require("RegDB", "validation", validation, (False, True))
        options = {"split": split, "validation": validation} | ({"seed": seed} if validation else {})
        folder = open_root("RegDB", root)
        super().__init__("regdb", folder, size, options)
        self.train = self._read("train", 0)
        self.test = self._read("test", TEST_IDENTITY_OFFSET)
        if shared := {r.source for r in self.train} & {r.source for r in self.test}:
            raise InputError(
                f"RegDB: split {split} lists {min(shared)} for both training and test; fetch the lists again"
            )
        if validation:
            self.train, self.val = hold_out("RegDB", self.train, seed)

    def _read(self, part: str, offset: int) -> list[Record]:
        records = []
        for spectrum, modality in SPECTRA.items():
            listing = f"idx/{part}_{spectrum}_{self.options['split']}.txt"
            for entry in read_list("RegDB", self.root, listing):
                records.append(Record(entry.path, entry.label + offset, 1 + modality, modality))
        return records

    def trials(self, query_modality: Modality | None = None) -> list[Trial]:
        """Return the split's single trial; visible queries by default, both directions are official."""
        return [all_against_all(self.test, query_direction(self, query_modality))]
