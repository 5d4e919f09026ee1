"""RegDB in its official layout: `Visible/`, `Thermal/` and `idx/{train,test}_{visible,thermal}_{1..10}.txt`."""

from typing import ClassVar

from vireid_lite.data.benchmarks.lists import NO, TEST_IDENTITY_OFFSET, Benchmark, check_people, read_list
from vireid_lite.data.records import Modality, Record

SPECTRA = {"visible": Modality.VISIBLE, "thermal": Modality.INFRARED}


class RegDB(Benchmark):
    """RegDB (Nguyen et al., Sensors 2017): one of its ten splits, every query against the whole other modality.

    A published RegDB number is the mean over ten splits, each with a model of its own; a split has a single trial.
    Labels run from 0 in both the training and the test lists but name different people, so a test identity is its
    label + 10,000. Visible images are camera 1, thermal ones camera 2.

    Keyword Args:
        split: 1 to 10.
        validation: True holds a tenth of the training identities, drawn from `seed`, out as `val`.
    """

    name, title = "regdb", "RegDB"
    choices: ClassVar = {"split": (1, range(1, 11)), "validation": NO}

    def _load(self, seed: int) -> None:
        self.train, self.test = self._read("train", 0), self._read("test", TEST_IDENTITY_OFFSET)
        check_people(self.title, [*self.train, *self.test])
        if self.options["validation"]:
            self.hold_out(seed)

    def who(self, record: Record) -> str:
        """Return the folder, as labels name other people in another split; the file, where no folder names one."""
        return "/".join(record.source.split("/")[1:-1]) or record.source

    def _read(self, part: str, offset: int) -> list[Record]:
        return [
            Record(entry.path, entry.label + offset, 1 + modality, modality)
            for spectrum, modality in SPECTRA.items()
            for entry in read_list("RegDB", self.root, f"idx/{part}_{spectrum}_{self.options['split']}.txt")
        ]
