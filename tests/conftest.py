"""Shared by all tests: every cache in a temporary folder, and small data to work on."""

import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch

from vireid_lite import models
from vireid_lite.attacks.frozen import training_store
from vireid_lite.data import ImageStore, Modality, SyntheticVI

matplotlib.use("Agg")
sys.path.insert(0, str(Path(__file__).parents[1] / "book"))  # book production, `_make`
# The files that take longest, longest first.
LONGEST = ("browser", "pdf", "behaviour", "cli", "kills", "book", "cluster", "parity", "cmps", "colab", "benchmark")


def pytest_collection_modifyitems(items):
    """Begin with what takes longest, so that of two processes none is left with it at the end (`make test`)."""
    place = {f"test_{name}": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(LONGEST)))


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory):
    """Keep crops and victims of the tests apart from the reader's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VIREID_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny():
    """12 identities with 4 images in each modality, and 6 held out twice."""
    return SyntheticVI(12, 4, size=(32, 16), val_identities=6, test_identities=6)


@pytest.fixture(scope="module")
def store(tiny):
    """The training crops of `tiny`."""
    return training_store(tiny)


@pytest.fixture(scope="module")
def saturated(store):
    """The same crops in pure black and white, where a clip's gradient is the only one there is."""
    images = np.where(store.images > 110, 255, 0).astype(np.uint8)
    infrared = (store.modalities == Modality.INFRARED).numpy()
    images[infrared] = images[infrared][..., :1]
    return ImageStore(images, store.records)


@pytest.fixture(scope="module")
def victim():
    """A small network whose modes and requires_grad are mixed on purpose: an attack has to put each back."""
    torch.manual_seed(0)
    model = models.build("agw", 12, "lite")
    model.train()
    model.stages[0].eval()
    next(model.parameters()).requires_grad_(False)
    return model


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """An export of the attack lab, of a small network on small crops."""
    from lab_reference import export

    return export(tmp_path_factory.mktemp("lab"))
