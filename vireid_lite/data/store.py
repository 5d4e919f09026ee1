"""Decoded crops as one uint8 memory map, and the batches drawn from it."""

import errno
import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vireid_lite.data.records import Dataset, Record, file_states, fingerprint
from vireid_lite.errors import InputError, whole
from vireid_lite.files import (
    cache_folder,
    clear_no_space,
    clear_unreadable,
    exclusive,
    source_hash,
    stable_hash,
    write_atomically,
)
from vireid_lite.machine import pick_device

ROWS_PER_STEP = 256  #: crops written between two notes of progress
CHECKSUM = 4  #: bytes behind the pixels


class ImageStore:
    """Crops of a list of records in their order, (N, H, W, 3) uint8, read from a memory map when asked for.

    dataset: whose records they are, which tells an attack whom it learns from.
    """

    def __init__(self, images: np.ndarray, records: Sequence[Record], dataset: Dataset | None = None) -> None:
        self.images, self.records, self.dataset = images, list(records), dataset
        if len(images) != len(self.records) or (isinstance(images, np.ndarray) and images.dtype != np.uint8):
            got = f"{len(images)} of {images.dtype} for {len(self.records)} records"
            raise InputError(f"store: one uint8 image (H, W, 3) for each record is needed, got {got}")
        self.modalities = torch.tensor([int(record.modality) for record in self.records], dtype=torch.int64)
        self.row = {record: index for index, record in enumerate(self.records)}

    def __len__(self) -> int:
        return len(self.records)

    def fingerprint(self) -> str:
        """Return 16 hex digits that change with any record, their order or any pixel."""
        pixels = hashlib.sha256(np.ascontiguousarray(self.images)).hexdigest()
        return stable_hash([fingerprint(self.records), pixels])

    def batch(self, indices: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return crops as float (n, 3, H, W) in [0, 1] on the device; they travel as uint8."""
        crops, device = torch.from_numpy(self.images[indices]), pick_device(device)
        if device.type == "cuda":
            crops = crops.pin_memory()
        return crops.to(device, non_blocking=device.type == "cuda").permute(0, 3, 1, 2).float().div_(255)

    def batches(self, size: int, device: torch.device | str = "cpu") -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (rows, images) over the whole store in order."""
        for start in range(0, len(self), size := whole("store", "batch size", size, 1)):
            rows = slice(start, min(start + size, len(self)))
            yield rows, self.batch(np.arange(rows.start, rows.stop), device)


def cached(dataset: Dataset, records: Sequence[Record], progress: bool = True) -> ImageStore:
    """Return the records' crops, decoding only what no earlier run, killed or not, left in `files.cache_folder()`.

    Raises:
        InputError: where a file cannot be read, and what was decoded before is kept; where the disk is full, and it is
            given back; or where the cache is damaged.
    """
    records = list(records)
    if not records:
        found = f"it has {len(dataset.train):,} for training and {len(dataset.val):,} for validation"
        raise InputError(f"{dataset.name}: no images to load, {found}; use other data or options for what needs them")
    folder = cache_folder() / "crops" / f"{dataset.name}-{_cache_key(dataset, records)}"
    whole = folder / "images.u8"
    with exclusive(folder, whole=whole), clear_no_space(f"cache of {dataset.name}", folder.parent):
        if not whole.exists():
            _decode(dataset, records, folder, progress)
    shape = (len(records), *dataset.size, 3)
    with clear_unreadable(whole):
        stat = whole.stat()
        if stat.st_size != math.prod(shape) + CHECKSUM or not _intact(whole, stat.st_mtime_ns, stat.st_ctime_ns):
            raise InputError(f"cache of {dataset.name}: {whole} is damaged; delete it, and it is made again")
        return ImageStore(np.memmap(whole, np.uint8, "r", shape=shape), records, dataset)


@lru_cache(maxsize=1 << 10)
def _intact(whole: Path, *times: int) -> bool:
    """Return whether a cache ends with the checksum of its pixels; looked at again where its times are others."""
    found = np.memmap(whole, np.uint8, "r")
    return zlib.crc32(found[:-CHECKSUM]) == int.from_bytes(found[-CHECKSUM:].tobytes(), "little")


def _cache_key(dataset: Dataset, records: Sequence[Record]) -> str:
    """Return a key that changes when the pixels may: the records, the code of `data`, the files' sizes and times."""
    key = [dataset.name, dataset.size, fingerprint(records), source_hash("data")]
    if dataset.root is None:
        return stable_hash([*key, dataset.describe()])
    return stable_hash([*key, file_states(dataset, records)])


def _decode(dataset: Dataset, records: list[Record], folder: Path, progress: bool) -> None:
    """Fill images.part, noting finished rows in rows.json; name it images.u8 when it is whole, its checksum behind."""
    part, note, shape = folder / "images.part", folder / "rows.json", (*dataset.size, 3)
    size, done = math.prod(shape), 0
    with suppress(OSError, TypeError, ValueError, OverflowError, RecursionError):  # nothing noted, or damaged
        done = max(0, min(int(json.loads(note.read_text())), part.stat().st_size // size))
    if shutil.disk_usage(folder).free < (len(records) - done) * size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # now, not after an hour of decoding
    bar = tqdm(total=len(records), initial=done, unit="crop", desc=f"decode {dataset.name}", disable=not progress)
    # Written, not mapped: where the disk fills up meanwhile, a memory map would kill the process instead of raising.
    try:
        with open(part, "r+b" if done else "wb") as file, bar, ThreadPoolExecutor(os.cpu_count()) as pool:
            file.seek(done * size)
            for start in range(done, len(records), ROWS_PER_STEP):
                rows = records[start : start + ROWS_PER_STEP]
                for crop in pool.map(dataset.read, rows):
                    if (crop.dtype, crop.shape) != (np.uint8, shape):
                        raise InputError(f"{dataset.name}: read gave {crop.dtype} {crop.shape}, not uint8 {shape}")
                    file.write(crop.tobytes())
                    bar.update()
                file.flush()
                os.fsync(file.fileno())
                write_atomically(note, json.dumps(start + len(rows)).encode())
            pixels = np.memmap(part, np.uint8, "r", shape=(len(records) * size,))
            file.write(zlib.crc32(pixels).to_bytes(CHECKSUM, "little"))
        os.replace(part, folder / "images.u8")
    except OSError:  # a full disk is given back
        part.unlink(missing_ok=True)
        raise
