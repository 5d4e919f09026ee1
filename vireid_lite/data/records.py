"""What every data set is made of: records, a reader for them, and trials of (query, gallery)."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from vireid_lite.errors import InputError


class Modality(IntEnum):
    """The spectrum an image was taken in; its value indexes a model's stems."""

    VISIBLE = 0  #: images of three channels
    INFRARED = 1  #: near or thermal, as three equal channels

    @property
    def other(self) -> Modality:
        """The opposite modality."""
        return Modality(1 - self)


@dataclass(frozen=True, slots=True)
class Record:
    """One crop of one person: where its pixels come from, and what is known about it.

    Attributes:
        source: path relative to the data set's root (POSIX separators), or the image's index where it is rendered.
        identity: the person's number in the data set's own numbering (not contiguous).
        camera: the camera's number in the data set's own numbering (from 1).
        box: (x, y, width, height) in pixels, where the crop is a part of the file's frame.
    """

    source: str | int
    identity: int
    camera: int
    modality: Modality
    box: tuple[int, int, int, int] | None = None


class Trial(NamedTuple):
    """One evaluation: every query is ranked against the whole gallery."""

    query: list[Record]
    gallery: list[Record]


class Dataset:
    """Records split into `train`, `val` and test `trials()`, identities disjoint between the three, and their reader.

    A subclass fills `train` and `val`, and implements `trials` and, where pixels are not files, `read`.

    Args:
        name: the data set's name as `load_dataset` takes it.
        root: the folder that holds the files; None where images are rendered.
        size: (height, width) in pixels of every crop that `read` returns.
        options: everything else that decides what the data are, for run cards and cache keys; never a path.

    Attributes:
        protocol: the ranking rules of `metrics.evaluate`: "regdb", "sysu" or "llcm".
        default_query: the modality of the queries in the official direction.
    """

    protocol = "regdb"
    default_query = Modality.VISIBLE

    def __init__(self, name: str, root: Path | None, size: tuple[int, int], options: dict) -> None:
        height, width = size
        if not (isinstance(height, int) and isinstance(width, int) and height >= 16 and width >= 8):
            raise InputError(f"{name}: size must be (height, width) in whole pixels, at least (16, 8); got {size}")
        self.name = name
        self.root = root
        self.size = (height, width)
        self.options = options
        self.train: list[Record] = []
        self.val: list[Record] = []

    def trials(self, query_modality: Modality | None = None) -> list[Trial]:
        """Return the test trials for one direction; None stands for the data set's official direction."""
        raise NotImplementedError

    def val_trial(self, query_modality: Modality | None = None) -> Trial:
        """Return one trial over the validation identities: all images of one modality against all of the other."""
        if not self.val:
            raise InputError(f"{self.name}: no validation identities are held out; load it with validation=True")
        return all_against_all(self.val, self.default_query if query_modality is None else query_modality)

    def read(self, record: Record) -> np.ndarray:
        """Return one crop as uint8, shape (height, width, 3); infrared has three equal channels."""
        return read_crop(Path(self.root, record.source), self.size, record.modality, record.box, self.name)

    def describe(self) -> dict:
        """Return what identifies these data in a run card: name, size and options, without any path."""
        return {"name": self.name, "size": list(self.size), **self.options}


def all_against_all(records: Sequence[Record], query_modality: Modality) -> Trial:
    """Return the trial of every image of one modality against every image of the other."""
    query = [record for record in records if record.modality == query_modality]
    return Trial(query, [record for record in records if record.modality != query_modality])


def fingerprint(records: Iterable[Record]) -> str:
    """Return 16 hex digits that change with any of the records or their order; no path can be read from them."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(repr((record.source, record.identity, record.camera, int(record.modality), record.box)).encode())
    return digest.hexdigest()[:16]


def read_crop(
    path: Path, size: tuple[int, int], modality: Modality, box: tuple[int, int, int, int] | None, name: str
) -> np.ndarray:
    """Decode, crop and resize one image file (Lanczos, as AGW's pre-processing).

    Args:
        size: (height, width) in pixels.
        box: (x, y, width, height) in pixels of the frame, or None for the whole file.

    Returns:
        uint8 (height, width, 3); infrared as three equal channels (luma of the file).

    Raises:
        InputError: where the file is absent, truncated, not an image, or of more than 8 bits a channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                # Pillow would clip these to white.
                raise InputError(f"{name}: {path} has more than 8 bits a channel ({image.mode}); convert it to 8 bits")
            pixels = image.convert("RGB" if modality == Modality.VISIBLE else "L")
    except FileNotFoundError:
        raise InputError(f"{name}: {path} does not exist; check --root or the download") from None
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, struct.error, zlib.error, Image.DecompressionBombError) as error:
        # Pillow's decoders raise any of these on broken files.
        raise InputError(f"{name}: {path} is not a readable image ({error}); fetch the file again") from None
    if box is not None:
        x, y, width, height = box
        pixels = pixels.crop((x, y, x + width, y + height))
    pixels = pixels.resize((size[1], size[0]), Image.Resampling.LANCZOS)
    return np.asarray(pixels.convert("RGB"))
