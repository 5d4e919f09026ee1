"""What every data set is made of: records, a reader for them, and trials of (query, gallery)."""

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from vireid_lite.errors import InputError

Size = tuple[int, int]  #: (height, width) in pixels
Box = tuple[int, int, int, int]  #: (x, y, width, height) in pixels


class Modality(IntEnum):
    """The spectrum an image was taken in; its value indexes a model's stems."""

    VISIBLE = 0  #: images of three channels
    INFRARED = 1  #: near or thermal, as three equal channels

    @property
    def other(self) -> "Modality":
        """The opposite modality."""
        return Modality(1 - self)


@dataclass(frozen=True, slots=True)
class Record:
    """One crop of one person: where its pixels come from, and what is known about it."""

    source: str | int  #: path relative to the data set's root (POSIX separators), or its number where it is rendered
    identity: int  #: in the data set's own numbering (not contiguous)
    camera: int  #: in the data set's own numbering (from 1)
    modality: Modality
    box: Box | None = None  #: (x, y, width, height) in pixels, where the crop is a part of the file's frame


class Trial(NamedTuple):
    """One evaluation: every query is ranked against the whole gallery."""

    query: list[Record]
    gallery: list[Record]


class Dataset:
    """Records split into `train`, `val` and test `trials()`, identities disjoint between the three, and their reader.

    A subclass fills `train`, `val` and `test`, or has `trials` of its own and, where pixels are not files, `read`.

    Args:
        name: as `load_dataset` takes it.
        root: the folder that holds the files; None where images are rendered.
        size: (height, width) in pixels of every crop that `read` returns.
        options: everything else that decides what the data are, for run cards and cache keys; never a path.
    """

    protocol = "regdb"  #: the ranking rules of `metrics.evaluate`: "regdb", "sysu" or "llcm"
    default_query = Modality.VISIBLE  #: in the official direction
    left_out = ""  #: what a default leaves out of `test`, for the lines that print scores

    def __init__(self, name: str, root: Path | None, size: Size, options: dict) -> None:
        sides = tuple(size) if isinstance(size, list | tuple) else ()
        if not (list(map(type, sides)) == [int, int] and 4096 >= sides[0] >= 16 and 4096 >= sides[1] >= 8):
            allowed = "at least (16, 8) and at most (4096, 4096)"
            raise InputError(f"{name}: size must be (height, width) in whole pixels, {allowed}; got {size}")
        self.name, self.root, self.size, self.options = name, root, sides, options
        self.train, self.val, self.test = ([] for _ in range(3))

    def trials(self, query_modality: Modality | None = None) -> list[Trial]:
        """Return the test trials of one direction: unless said otherwise one, all of a modality against the other."""
        return [all_against_all(self.test, self.direction(query_modality))]

    def val_trial(self, query_modality: Modality | None = None) -> Trial:
        """Return the trial of the validation identities."""
        if not self.val:
            given = "load it with -o validation=true (validation=True in Python)"
            remedy = given if "validation" in self.options else "this data set has none, so use its test trials"
            raise InputError(f"{self.name}: no validation identities are held out; {remedy}")
        return all_against_all(self.val, self.direction(query_modality))

    def direction(self, query_modality: Modality | int | None) -> Modality:
        """Return the modality of the queries; None stands for the data set's official direction."""
        if query_modality is not None and query_modality not in list(Modality):
            raise InputError(f"{self.name}: query_modality must be a Modality; got {query_modality!r}")
        return self.default_query if query_modality is None else Modality(query_modality)

    def read(self, record: Record) -> np.ndarray:
        """Return a crop (Lanczos, as AGW's), uint8 (height, width, 3); infrared is the luma in three equal channels."""
        image = decoded(Path(self.root, record.source), self.name)
        pixels = image.convert("RGB" if record.modality == Modality.VISIBLE else "L")
        if record.box is not None:
            x, y, width, height = record.box
            if not (0 <= x < x + width <= pixels.width and 0 <= y < y + height <= pixels.height):
                raise InputError(f"{self.name}: box {record.box} leaves {record.source}, {pixels.size}; mend it")
            pixels = pixels.crop((x, y, x + width, y + height))
        return np.asarray(pixels.resize(self.size[::-1], Image.Resampling.LANCZOS).convert("RGB"))

    def describe(self) -> dict:
        """Return what identifies these data in a run card: name, size and options, without any path."""
        return {"name": self.name, "size": list(self.size), **self.options}


def all_against_all(records: Sequence[Record], query_modality: Modality) -> Trial:
    """Return the trial of every image of one modality against every image of the other."""
    query = [record for record in records if record.modality == query_modality]
    return Trial(query, [record for record in records if record.modality != query_modality])


def fingerprint(records: Iterable[Record]) -> str:
    """Return 16 hex digits that change with any of the records or their order; no path can be read from them."""
    lines = (repr((each.source, each.identity, each.camera, int(each.modality), each.box)) for each in records)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


@contextmanager
def opened(path: Path, name: str) -> Iterator[Image.Image]:
    """Open an image file; one that is absent or does not decode is an InputError that begins with `name` and path."""
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise InputError(f"{name}: {path} does not exist; check --root or the download") from None
    except UnidentifiedImageError:
        start = path.read_bytes()[:64].lstrip().lower()
        known = "an HTML page" if start.startswith((b"<!doctype", b"<html")) else "unknown format"
        found = f"{path} is not a readable image ({known if start else 'empty file'})"
        raise InputError(f"{name}: {found}; fetch the file again") from None
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        # Pillow's decoders raise any of these on broken files.
        raise InputError(f"{name}: {path} is not a readable image ({error}); fetch the file again") from None


def turned(image: Image.Image) -> int:
    """Return the EXIF orientation in an opened file's header: 1 as stored, from 5 on with its sides swapped."""
    orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(2, 9) else 1


def decoded(path: Path, name: str) -> Image.Image:
    """Return a file's whole picture, upright, as its EXIF orientation says.

    Raises:
        InputError: where `opened` refuses the file, or where it is damaged or has more than 8 bits a channel.
    """
    with opened(path, name) as image:
        ImageOps.exif_transpose(image, in_place=True)
        image.load()
    if image.mode.startswith(("I", "F")):  # Pillow would clip these to white
        raise InputError(f"{name}: {path} has more than 8 bits a channel ({image.mode}); convert it to 8 bits")
    return image
