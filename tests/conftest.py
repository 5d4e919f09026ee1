"""Shared by all tests: every cache in a temporary folder, and small data to work on."""

import matplotlib
import pytest

from vireid_lite.data import SyntheticVI

matplotlib.use("Agg")


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
