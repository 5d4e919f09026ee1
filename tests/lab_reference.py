"""What the tests of the attack lab share: an export of a small network, read back with the package alone."""

import json
import zlib
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from PIL import Image

from vireid_lite import models
from vireid_lite.attacks import UniversalPerturbation
from vireid_lite.attacks.budget import to_8_bits
from vireid_lite.attacks.image_specific import Guides, MetricFGSM
from vireid_lite.chapters import lab
from vireid_lite.data import Modality, SyntheticVI
from vireid_lite.metrics.bootstrap import paired_bootstrap
from vireid_lite.models import two_stream
from vireid_lite.models.rounded import rounded

SPECTRA = {"visible": Modality.VISIBLE, "infrared": Modality.INFRARED}


def network(widths: tuple[int, ...] = (8, 12, 16, 24)):
    """Return a small lite AGW whose every statistic has been moved from where it starts."""
    with torch.random.fork_rng(), mock.patch.object(two_stream, "LITE_WIDTHS", widths):
        torch.manual_seed(0)
        model = models.build("agw", 12, "lite").eval()
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 2)
                module.weight.data.uniform_(0.5, 1.5)
                if module is not model.bottleneck:
                    module.bias.data.uniform_(-0.3, 0.3)
    return model


class Exported:
    """A folder of the lab, read back with the package alone."""

    def __init__(self, folder: Path, model) -> None:
        self.folder, self.model = folder, rounded(model)
        self.manifest = json.loads((folder / "manifest.json").read_text())
        self.levels = zlib.decompress((folder / "perturbations.bin").read_bytes())
        self.sheet = np.asarray(Image.open(folder / "sprite.png"))
        self.size = self.manifest["size"]

    def crop(self, cell: int) -> torch.Tensor:
        (height, width), columns = self.size, self.manifest["columns"]
        top, left = cell // columns * height, cell % columns * width
        crop = self.sheet[top : top + height, left : left + width]
        return torch.from_numpy(crop.copy()).permute(2, 0, 1).float().div_(255)[None]

    def gallery(self, state: dict, before: str) -> tuple[torch.Tensor, np.ndarray]:
        other = "infrared" if state["spectrum"] == "visible" else "visible"
        crops = self.manifest["gallery"][other]
        images = torch.cat([self.crop(each["cell"]) for each in crops])
        with torch.no_grad(), lab.standing_before(self.model, "chain" if before == "chain" else "nothing"):
            return self.model.embed(images, SPECTRA[other]), np.array([each["person"] for each in crops])

    def feature(self, images: torch.Tensor, state: dict) -> torch.Tensor:
        with torch.no_grad(), lab.standing_before(self.model, state["before"]):
            return self.model.embed(images, SPECTRA[state["spectrum"]])[0]

    def attacked(self, state: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the clean crop of a state, and the attacked one, by the package's own attack classes."""
        query, modality = self.manifest["queries"][state["spectrum"]][state["query"]], SPECTRA[state["spectrum"]]
        clean, eps = self.crop(query["cell"]), state["eps"] / 255
        tied = state["tied"] or (state["before"] == "mean" and state["adaptive"])
        if not eps:
            return clean, clean
        if state["attack"] == "steps":
            before = state["before"] if state["adaptive"] else "nothing"
            features, people = self.gallery(state, before)
            guides = Guides(features[people == query["person"]][None])
            size = eps if state["steps"] == 1 else None
            attack = MetricFGSM(eps=eps, steps=state["steps"], step_size=size, tied=tied)
            with lab.standing_before(self.model, before):
                adversarial = attack(self.model, clean, modality, guides)
            return clean, to_8_bits(adversarial, clean, eps) if state["bits"] else adversarial
        through = "chain" if state["before"] == "chain" and state["adaptive"] and "noise" not in state["attack"] else ""
        (made,) = (
            each
            for each in self.manifest["perturbations"]
            if (each["attack"], each["tied"], each["through"]) == (state["attack"], tied, through or "nothing")
            and each["eps"] == min(stop for stop in lab.STOPS if stop >= state["eps"])
        )
        place, (height, width) = made[state["spectrum"]], self.size
        count = height * width * place["channels"]
        levels = np.frombuffer(self.levels, np.int8, count, place["at"]).reshape(height, width, place["channels"])
        delta = torch.from_numpy(levels.astype(np.float32)).permute(2, 0, 1) * np.float32(made["eps"] / 255 / 127)
        delta = (delta * np.float32(state["eps"] / made["eps"])).expand(3, -1, -1)
        delta = delta.roll((state["down"], state["right"]), (1, 2))
        perturbation = UniversalPerturbation(delta, eps, False, [], made_by={})
        return clean, (perturbation.apply_rounded if state["bits"] else perturbation.apply)(clean, modality)


def export(folder: Path) -> Exported:
    data = SyntheticVI(12, 2, size=(32, 16), val_identities=2, test_identities=14)
    victim = (model := network()), {"dataset": data.describe()}, data
    with mock.patch.object(lab, "paired_bootstrap", partial(paired_bootstrap, repeats=20)):
        lab.export(victim, folder, gradients=2, identities=4)
    return Exported(folder, model)
