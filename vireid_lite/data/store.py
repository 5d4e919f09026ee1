"""Decoded crops as one uint8 memory map, and the batches drawn from it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from vireid_lite.data.records import Dataset, Record, fingerprint
from vireid_lite.errors import InputError
from vireid_lite.files import cache_folder, clear_no_space, exclusive, source_hash, stable_hash, write_atomically

ROWS_PER_STEP = 256  # crops written between two notes of progress


class ImageStore:
    """Decoded crops of a list of records, on disk, in the records' order.

    images: (N, H, W, 3) uint8 memory map. A batch is read when it is asked for, so memory does not grow with the set.
    """

    def __init__(self, images: np.ndarray, records: Sequence[Record]) -> None:
        self.images = images
        self.records = list(records)
        self.modalities = torch.tensor([int(record.modality) for record in self.records], dtype=torch.int64)
        self.row = {record: index for index, record in enumerate(self.records)}

    def __len__(self) -> int:
        return len(self.records)

    def batch(self, indices: np.ndarray, device: torch.device | str = "cpu") -> torch.Tensor:
        """Return crops as float (n, 3, H, W) in [0, 1] on the device; they travel as uint8."""
        crops = torch.from_numpy(self.images[indices])
        device = torch.device(device)
        if device.type == "cuda":
            crops = crops.pin_memory().to(device, non_blocking=True)
        return crops.permute(0, 3, 1, 2).float().div_(255)

    def batches(self, size: int, device: torch.device | str = "cpu") -> Iterator[tuple[slice, torch.Tensor]]:
        """Yield (rows, images) over the whole store in order."""
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            yield rows, self.batch(np.arange(rows.start, rows.stop), device)


def cached(dataset: Dataset, records: Sequence[Record], progress: bool = True) -> ImageStore:
    """Return the records' crops as an ImageStore, decoding only what no earlier run has decoded.

    The files live in `provenance.cache_folder()`; a killed run resumes where it stopped.
    Raises InputError where a file cannot be read or the disk is full; what was decoded before is kept.
    """
    records = list(records)
    if not records:
        raise InputError(f"{dataset.name}: no images to load; check the split and its options")
    shape = (len(records), *dataset.size, 3)
    folder = cache_folder() / "crops" / f"{dataset.name}-{_cache_key(dataset, records)}"
    with exclusive(folder), clear_no_space(f"cache of {dataset.name}", folder.parent):
        if not (folder / "images.u8").exists():
            _decode(dataset, records, folder, shape, progress)
    return ImageStore(np.memmap(folder / "images.u8", dtype=np.uint8, mode="r", shape=shape), records)


def _cache_key(dataset: Dataset, records: Sequence[Record]) -> str:
    """Return a key that changes when the pixels may: the records, the code of `data`, the files' sizes and times."""
    key = [dataset.name, dataset.size, fingerprint(records)]
    if dataset.root is None:
        return stable_hash([*key, dataset.describe(), source_hash("data")])
    stats = []
    for source in sorted({str(record.source) for record in records}):
        try:
            stat = os.stat(dataset.root / source)
        except OSError as error:
            raise InputError(f"{dataset.name}: {dataset.root / source} cannot be read ({error.strerror})") from None
        stats.append([source, stat.st_size, stat.st_mtime_ns])
    return stable_hash([*key, str(dataset.root.resolve()), source_hash("data"), stats])


def _decode(dataset: Dataset, records: list[Record], folder: Path, shape: tuple[int, ...], progress: bool) -> None:
    """Fill images.part, noting finished rows in rows.json, and name it images.u8 when it is whole."""
    part, note = folder / "images.part", folder / "rows.json"
    done = json.loads(note.read_text()) if note.exists() and part.exists() else 0
    with open(part, "r+b" if part.exists() else "w+b") as file:
        # Reserved up front: a memory map on a full disk would kill the process instead of raising.
        os.posix_fallocate(file.fileno(), 0, int(np.prod(shape)))
        images = np.memmap(file, dtype=np.uint8, mode="r+", shape=shape)
        bar = tqdm(total=len(records), initial=done, unit="crop", desc=f"decode {dataset.name}", disable=not progress)
        with bar, ThreadPoolExecutor(os.cpu_count()) as pool:
            for start in range(done, len(records), ROWS_PER_STEP):
                rows = records[start : start + ROWS_PER_STEP]
                for offset, crop in enumerate(pool.map(dataset.read, rows)):
                    images[start + offset] = crop
                    bar.update()
                images.flush()
                os.fsync(file.fileno())
                write_atomically(note, json.dumps(start + len(rows)).encode())
    os.replace(part, folder / "images.u8")
