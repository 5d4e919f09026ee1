"""What every data set is made of: records, a reader for them, and trials of (query, gallery)."""

import hashlib
import os
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
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


def one_modality(modality: object) -> Modality:
    """Return the modality of a whole batch. Raises InputError for what is neither a Modality nor its number."""
    if isinstance(modality, bool) or not isinstance(modality, int | np.integer) or modality not in (0, 1):
        kind = "Modality.VISIBLE, Modality.INFRARED or a tensor of one 0 or 1 per image is needed"
        raise InputError(f"modality: {kind}, got {modality!r}")
    return Modality(modality)


def check_modality(modality: object, images: int | None = None) -> Modality | torch.Tensor:
    """Return one Modality, or int64 (N,) of 0 and 1, N = `images` if given. Raises InputError for anything else."""
    if not isinstance(modality, torch.Tensor):
        return one_modality(modality)
    fits = modality.dtype == torch.int64 and modality.ndim == 1 and images in (None, len(modality))
    fits = fits and modality.device.type != "meta"
    if not fits or not ((modality == 0) | (modality == 1)).all():
        wanted = "one 0 (visible) or 1 (infrared) per image is needed, int64"
        got = f"{str(modality.dtype).removeprefix('torch.')} of shape {tuple(modality.shape)}"
        raise InputError(f"modality: {wanted}, {len(modality) if images is None else images} in all; got {got}")
    return modality


@dataclass(frozen=True, slots=True)
class Record:
    """One crop of one person: where its pixels come from, and what is known about it."""

    source: str | int  #: path relative to the data set's root (POSIX separators), or its number where it is rendered
    identity: int  #: in the data set's own numbering (not contiguous)
    camera: int  #: in the data set's own numbering (from 1)
    modality: Modality
    box: Box | None = None  #: (x, y, width, height) in pixels, where the crop is a part of the file's frame

    def __post_init__(self) -> None:
        one_modality(self.modality)


class Trial(NamedTuple):
    """One evaluation: every query is ranked against the whole gallery."""

    query: list[Record]
    gallery: list[Record]


class Dataset:
    """Records split into `train`, `val` and test `trials()`, identities disjoint between the three, and their reader.

    A subclass fills `train`, `val` and `test`, or has `trials` of its own and, where pixels are not files, `read`. Only
    rendered data have `tuning`, people to tune attacks on where `val` chose the victim, and `traffic`.

    Args:
        name: as `load_dataset` takes it.
        root: the folder that holds the files; None where images are rendered.
        size: (height, width) in pixels of every crop that `read` returns.
        options: everything else that decides what the data are, for run cards and cache keys; never a path.
    """

    protocol = "regdb"  #: the ranking rules of `metrics.evaluate`: "regdb", "sysu" or "llcm"
    default_query = Modality.VISIBLE  #: in the official direction
    traffic: Sequence[Record] = ()  #: people of no other split, whom a camera may see
    left_out = ""  #: what a default leaves out of `test`, for the lines that print scores

    def __init__(self, name: str, root: Path | None, size: Size, options: dict) -> None:
        sides = tuple(size) if isinstance(size, list | tuple) else ()
        if not (list(map(type, sides)) == [int, int] and 4096 >= sides[0] >= 16 and 4096 >= sides[1] >= 8):
            allowed = "at least (16, 8) and at most (4096, 4096)"
            raise InputError(f"{name}: size must be (height, width) in whole pixels, {allowed}; got {size}")
        self.name, self.root, self.size, self.options = name, root, sides, options
        self.train, self.val, self.tuning, self.test = ([] for _ in range(4))

    def trials(self, query_modality: Modality | None = None) -> list[Trial]:
        """Return the test trials of one direction: unless said otherwise one, all of a modality against the other."""
        return [all_against_all(self.test, self.direction(query_modality))]

    def val_trial(self, query_modality: Modality | None = None, split: str = "val") -> Trial:
        """Return the trial of the validation identities, or of those of another split that are no test: "tuning"."""
        if not (held_out := getattr(self, split)):
            remedy = "take the split val" if self.val else "this data set has none, so use its test trials"
            if not self.val and "validation" in self.options:
                remedy = "load it with -o validation=true (validation=True in Python)"
                remedy += " and take the split val" * (split == "tuning")
            raise InputError(f"{self.name}: no {split} identities are held out; {remedy}")
        return all_against_all(held_out, self.direction(query_modality))

    def direction(self, query_modality: Modality | int | None) -> Modality:
        """Return the modality of the queries; None stands for the data set's official direction."""
        return self.default_query if query_modality is None else one_modality(query_modality)

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

    def who(self, record: Record) -> str:
        """Return what names the record's person in every split, whatever the options."""
        return str(record.identity)

    def describe(self) -> dict:
        """Return what identifies these data in a run card: name, size and options, without any path."""
        return {"name": self.name, "size": list(self.size), **self.options}


def all_against_all(records: Sequence[Record], query_modality: Modality) -> Trial:
    """Return the trial of every image of one modality against every image of the other."""
    query_modality = one_modality(query_modality)
    query = [record for record in records if record.modality == query_modality]
    return Trial(query, [record for record in records if record.modality != query_modality])


def people(dataset: Dataset, records: Iterable[Record]) -> set[str]:
    """Return 12 hex digits for each person of some records, the same in every split of a data set and every copy."""
    names = {f"{dataset.name}/{dataset.who(record)}" for record in records}
    return {hashlib.sha256(name.encode()).hexdigest()[:12] for name in names}


def fingerprint(records: Iterable[Record], dataset: Dataset | None = None) -> str:
    """Return 16 hex digits that change with any of the records or their order; no path can be read from them.

    dataset: theirs, where the bytes of their files count as well; rendered images have none.
    """
    records = list(records)
    lines = (repr((each.source, each.identity, each.camera, int(each.modality), each.box)) for each in records)
    digest = hashlib.sha256("".join(lines).encode())
    if dataset is not None and dataset.root is not None:
        with ThreadPoolExecutor() as pool:
            for found in pool.map(_digest, *zip(*file_states(dataset, records), strict=True)):
                digest.update(found)
    return digest.hexdigest()[:16]


def file_states(dataset: Dataset, records: Iterable[Record]) -> list[tuple[str, int, int, int]]:
    """Return path, size and times (modified, moved or changed, ns) of each of the records' files, by name."""
    try:
        paths = [str(dataset.root.resolve() / source) for source in sorted({str(each.source) for each in records})]
        return [(path, (stat := os.stat(path)).st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path in paths]
    except OSError as error:
        raise InputError(f"{dataset.name}: {error.filename} cannot be read ({error.strerror})") from None


@lru_cache(maxsize=1 << 18)
def _digest(path: str, *state: int) -> bytes:
    """Return a digest of a file's bytes, read again where its size or times are others."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).digest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); check its permissions") from None


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
    """Return the EXIF orientation of an opened file: 1 as stored, from 5 on with its sides swapped."""
    behind = Path(image.filename).read_bytes().rpartition(b"IDAT")[2] if image.format == "PNG" else b""
    # What a PNG says behind its pixels is found by decoding them.
    exif = image.getexif() if re.search(b"eXIf|[iz]TXt|tEXt", behind) else Image.Image.getexif(image)
    orientation = exif.get(ExifTags.Base.Orientation, 1)
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
    return image.convert("RGB") if image.mode == "LAB" else image  # Pillow has no way from LAB to grey
