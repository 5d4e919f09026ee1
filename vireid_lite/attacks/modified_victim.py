"""The feature-level paper read literally: the victim itself is retrained, on perturbed images, with its three parts.

Every hyper-parameter the paper prints belongs to a training (SGD, 60 epochs, warm-up), and its commands train a network
and test it. Whoever can do this owns the victim, so its scores never stand beside those of a bounded attack. The same
loop trains a victim with FSAM, SE or ECA and its usual losses, to see what they do where nobody attacks.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import torch

from vireid_lite.attacks.budget import EPS, check_eps, clip
from vireid_lite.attacks.frozen import Stream, noise
from vireid_lite.attacks.perturbation import UniversalPerturbation
from vireid_lite.data.records import Dataset, Modality, fingerprint
from vireid_lite.errors import MANY, InputError, check_choice, check_flag, check_number, whole
from vireid_lite.files import ATTACK_CODE, cache_folder, exclusive, source_hash, stable_hash, write_tensors
from vireid_lite.losses import class_centres, identity_loss, quadruple_loss
from vireid_lite.machine import pick_device
from vireid_lite.models.checkpoints import load_strictly, read_weights
from vireid_lite.models.insertion import check_blocks, insert, staged
from vireid_lite.models.two_stream import Batch, Objective, TwoStream, generalised_mean
from vireid_lite.victims import Recipe, check_trained, load_or_train, trained_card, untrained

CHOICES = {
    "attention": ("fsam", "se", "eca", "none"),
    "loss": ("quadruple", "identity", "recipe"),
    "form": ("hinge", "linear"),
    "noise": ("sign", "uniform", "none"),
    "start": ("victim", "scratch"),
}


@dataclass(frozen=True, kw_only=True)
class Modification:
    """What is changed about a victim's training; the defaults are the paper's method.

    Attributes:
        attention: what stands after each of `blocks`: "fsam", "se", "eca" or "none".
        sfm: a second attention after block 4.
        loss: beside the identity loss, "quadruple", nothing ("identity"), or the recipe's own triplet ("recipe").
        form, alpha, normalise: of the quadruple loss.
        noise: the perturbation the images carry in training and test, drawn once for each modality: "sign" (+-eps),
            "uniform" in [-eps, eps], or "none".
        start: the weights before the first step, of the trained "victim" (the paper's: of ImageNet) or "scratch".
        epochs: of this training; None for the recipe's.
    """

    attention: str = "fsam"
    blocks: tuple[int, ...] = (0, 4)
    sfm: bool = True
    loss: str = "quadruple"
    form: str = "hinge"
    alpha: float = 0.2
    normalise: bool = False
    noise: str = "sign"
    eps: float = EPS
    start: str = "victim"
    epochs: int | None = None

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            check_choice("modification", name, getattr(self, name), known)
        for name in ("sfm", "normalise"):
            check_flag("modification", name, getattr(self, name))
        check_number("modification", "alpha", self.alpha, 0, 1e6)
        if self.epochs is not None:
            whole("modification", "epochs", self.epochs, 1, MANY, int)
        check_eps(self.eps)
        object.__setattr__(self, "blocks", check_blocks("modification", self.blocks))

    def perturbation(self, size: tuple[int, int], seed: int) -> UniversalPerturbation | None:
        """Return the noise that training and test images of a size carry, one delta for each modality, or None.

        Which delta the paper adds is not stated; "no gradients of the model" fits noise.
        """
        if self.noise == "none":
            return None
        # Two draws of one seed each: the modalities carry different noise.
        deltas = {m: self.eps * noise(self.noise, (3, *size), 2 * seed + int(m), Stream.NOISE) for m in Modality}
        return UniversalPerturbation(deltas, self.eps, made_by={"name": f"{self.noise}-noise", "seed": seed})

    def objective(self, model: TwoStream, perturbation=None, device="cpu") -> Callable[[Batch], Objective]:
        """Insert the modules into a network, for good, and return what it is trained by instead of its own objective.

        `other_loss` is 0 beside the identity loss alone; `active` is the share of the quadruple loss's hinges above 0.
        A step's images carry the perturbation, if there is one; device: where it will be trained.
        """
        modules, tap = staged(model, self.attention, self.blocks, self.sfm)
        insert(model, modules)
        deltas = perturbation and torch.stack([perturbation.delta[each] for each in Modality]).to(device)

        def objective(batch: Batch) -> Objective:
            images, modality = batch.images, batch.modality
            if deltas is not None:
                images = clip(images + deltas[modality.to(deltas.device)])
            output = model(images, modality)
            identity = identity_loss(output.logits, batch.labels, batch.smoothing)
            other = active = identity.new_zeros(())
            if self.loss == "recipe" and batch.triplet:
                other = batch.triplet(output.pooled, batch.labels)
            elif self.loss == "quadruple":
                stages = generalised_mean(tap.maps, model.gem_p), output.pooled
                first, second = (class_centres(stage, batch.labels, modality) for stage in stages)
                given = {"alpha": self.alpha, "form": self.form, "normalise": self.normalise}
                other, active = quadruple_loss(*first, *second, **given)
            return Objective({"identity": identity, "other": other}, output.logits, batch.labels, {"active": active})

        return objective


class ModifiedVictim(NamedTuple):
    """A trained network with its modules inside (`model`), the perturbation it was trained on, and its card."""

    model: TwoStream
    perturbation: UniversalPerturbation | None
    card: dict


@torch.inference_mode(False)
def train_modified_victim(
    recipe: Recipe, dataset: Dataset, modification=None, *, seed=0, device="auto", folder=None, progress=True
) -> ModifiedVictim:
    """Return a victim trained with `modification`, loaded where it was trained before.

    A killed training resumes. Card keys: "modification" beside those of `victims.trained_card`.

    Args:
        recipe: of the victim it starts from; network, schedule and augmentation are kept, and its triplet is used with
            loss="recipe" alone.
        modification: a `Modification`; None for the paper's.
        folder: where it is kept; None stands for a folder of the cache, keyed by everything the result depends on.
    """
    modification = modification or Modification()
    if modification.loss == "recipe" and recipe.triplet is None:
        raise InputError(f"modification: {recipe.model} has no triplet for loss 'recipe'; choose quadruple or identity")
    device, seed = pick_device(device), whole("modification", "seed", seed)
    described = [recipe.describe(), asdict(modification), dataset.describe(), fingerprint(dataset.train, dataset), seed]
    key = stable_hash([*described, source_hash(*ATTACK_CODE)])
    folder = folder or cache_folder() / "modified" / key
    path = folder / "modified.safetensors"
    # Trained before the modules are drawn and the folder is held, as it may take long.
    start = modification.start == "victim"
    victim = load_or_train(recipe, dataset, seed=seed, device=device, progress=progress)[0] if start else None
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = untrained(recipe, dataset, recipe.pretrained and victim is None)
        if victim is not None:
            model.load_state_dict(victim.state_dict())
        perturbation = modification.perturbation(dataset.size, seed)
        objective = modification.objective(model, perturbation, device)
    with exclusive(folder, whole=path):
        if not path.exists():
            note = folder / "state.pt"
            settings = replace(recipe.settings, epochs=modification.epochs or recipe.settings.epochs)
            how = {"key": key, "seed": seed, "state_path": note, "progress": progress}
            card = trained_card(model, recipe, dataset, settings, device, objective=objective, **how)
            card |= {"modification": asdict(modification), "people": sorted(model.people)}
            write_tensors(path, model.state_dict(), "card", json.dumps(card))
            note.unlink(missing_ok=True)
    state, card = read_weights(path, "a modified victim", "delete it to train it again")
    if card.get("key") != key:
        raise InputError(f"{path} holds a victim of other settings, data, seed or code; choose another folder")
    check_trained(card, path)
    load_strictly(model, state, {name: name for name in model.state_dict()}, str(path))
    model.people = set(map(str, card["people"])) if isinstance(card.get("people"), list) else None
    return ModifiedVictim(model.to(device, memory_format=torch.channels_last).eval(), perturbation, card)
