"""Attacks on a frozen victim: one file an idea, all under the contract of `budget`."""

from dataclasses import fields
from pathlib import Path

from vireid_lite.attacks.budget import EPS
from vireid_lite.attacks.cmps import CMPS
from vireid_lite.attacks.cmps_switches import SWITCHES, SwitchedCMPS
from vireid_lite.attacks.descent import UniversalAttack
from vireid_lite.attacks.dmr import DMR, GeneratorPerturbation
from vireid_lite.attacks.feature_level import FeatureLevelAttack
from vireid_lite.attacks.image_specific import IMAGE_SPECIFIC, AdversarialStore, Guides, ImageAttack, craft
from vireid_lite.attacks.modified_victim import Modification, ModifiedVictim, train_modified_victim
from vireid_lite.attacks.perturbation import Perturbation, UniversalPerturbation
from vireid_lite.attacks.universal import UNIVERSAL
from vireid_lite.errors import MANY, InputError, check_choice, whole

__all__ = [
    "ATTACKS", "CMPS", "DMR", "EPS", "IMAGE_SPECIFIC", "UNIVERSAL", "AdversarialStore", "FeatureLevelAttack",
    "GeneratorPerturbation", "Guides", "ImageAttack", "Modification", "ModifiedVictim", "UniversalAttack",
    "UniversalPerturbation", "build_attack", "craft", "load_perturbation", "train_modified_victim",
]  # fmt: skip

# Neither class of CMPS knows the other, so that it means something that both are equal.
CMPS.switches, CMPS.switched = SWITCHES, SwitchedCMPS
ATTACKS = {**UNIVERSAL, "dmr": DMR, "cmps": CMPS, "feature-level": FeatureLevelAttack, **IMAGE_SPECIFIC}


def build_attack(name: str, *, gradients: int | None = None, **options: object) -> UniversalAttack | ImageAttack:
    """Return an attack by name, such as "cmps" or "m-fgsm", with its options. Raises InputError for what it cannot be.

    Args:
        gradients: batches that go forward and backward in all; sets the steps of a universal attack, so that attacks of
            one and of two gradients a step compare at equal cost. Ignored by noise and by image-specific attacks.
    """
    check_choice("attack", "name", name, ATTACKS)
    kind = ATTACKS[name]
    known = [*(field.name for field in fields(kind) if field.init), *(SWITCHES if kind is CMPS else ())]
    for option in sorted(set(options) - set(known)):
        raise InputError(f"{name}: option {option!r} is unknown; it takes {', '.join(known)}")
    per_step = getattr(kind, "gradients_per_step", 0)
    if gradients is not None and per_step:
        if "steps" in options:
            raise InputError(f"{name}: steps and gradients say the same twice; give one of them")
        whole(name, "gradients", gradients, per_step, MANY, int)
        options["steps"] = gradients // per_step
    return kind(**options)


def load_perturbation(path: str | Path) -> Perturbation:
    """Return what `save` of either kind wrote. Raises InputError where the file is missing, damaged or neither."""
    return Perturbation.load(path)
