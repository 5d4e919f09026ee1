"""Attacks that make one perturbation for each image: FGSM, PGD, and those on the ranked feature.

All walk `project(x + step_size * sign(m))` with `m = momentum * m + g / mean|g|`, one mean an image; they differ in the
objective whose gradient is g. f is `model.embed`, the L2-normalised BNNeck feature, through the image's own stem.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from vireid_lite.attacks.budget import EPS, ModalityLike, check_eps, luma, project, tie_infrared, to_8_bits
from vireid_lite.attacks.features import over_crops
from vireid_lite.attacks.frozen import Stream, frozen, generator_for, images_of, noise
from vireid_lite.attacks.perturbation import Perturbation
from vireid_lite.data import ImageStore, Modality, Record
from vireid_lite.data.records import check_modality, one_modality
from vireid_lite.errors import MANY, InputError, check_flag, check_number, whole
from vireid_lite.models.two_stream import check_images

Objective = Callable[[Tensor, int], Tensor]  #: (images, step) -> (N,), what an attack maximises for each image
STARTS = ("own start", "delta", "from delta")  #: the points at which `craft` tells what an attack gained
AREA, ASPECT = (0.02, 0.4), (0.3, 1 / 0.3)  # LTA's rectangle: share of the image, height / width


class Guides(NamedTuple):
    """Features an attacker has beside the image itself, L2-normalised and detached."""

    same: Tensor  #: (N, G, D), of images of the same person, the image's own where it is among them
    far: Tensor | None = None  #: (N, D), the mean of the farthest other identity, if there is another


class Target(NamedTuple):
    """What is attacked, with what and how, in one batch."""

    model: nn.Module
    images: Tensor
    modality: ModalityLike
    guides: Guides | None = None
    seed: int = 0

    def features(self, images: Tensor) -> Tensor:
        return self.model.embed(images, self.modality)


@dataclass(frozen=True, kw_only=True)
class ImageAttack:
    """The parameters and the loop; a subclass has `objective(target)`, which returns what it maximises, an `Objective`.

    Args:
        eps: budget in [0, 1] pixels.
        steps: gradient evaluations an image; int(min(eps + 4, 1.25 eps)) (Kurakin et al. 2017) is 10 for eps 8.
        step_size: None is eps / 4 (Madry et al.: 2 for 8).
        tied: what infrared images receive has three equal channels, as they have.
        restarts: walks from a random start, of which each image keeps the one that gains most (Madry et al. 2018).
    """

    name: ClassVar[str]
    knows: ClassVar[str] = "the victim's weights; the query alone"
    stays: ClassVar[str] = "its gradient is zero there"  # why an image may be left as it was
    momentum: ClassVar[float] = 0.0
    random_start: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ()  # fields of Guides
    eps: float = EPS
    steps: int = 10
    step_size: float | None = None
    tied: bool = False
    restarts: int = 1

    def __post_init__(self) -> None:
        check_eps(self.eps)
        whole(self.name, "steps", self.steps, 1, MANY, int)
        check_number(self.name, "step_size", self.rate, 1e-9, 1)
        check_flag(self.name, "tied", self.tied)
        check_number(self.name, "momentum", self.momentum)
        if whole(self.name, "restarts", self.restarts, 1, MANY, int) > 1 and not self.random_start:
            raise InputError(f"{self.name}: it has no random start, so restarts would repeat it; leave them out")

    @property
    def rate(self) -> float:
        """The step size that is taken."""
        return self.eps / 4 if self.step_size is None else self.step_size

    def describe(self) -> dict:
        """Return name and parameters as plain values, for run cards and keys."""
        fixed = {"step_size": self.rate, "momentum": self.momentum, "random_start": self.random_start}
        return {"name": self.name, **asdict(self), **fixed}

    def __call__(
        self, model: nn.Module, images: Tensor, modality: ModalityLike, guides=None, seed: int = 0, *, begin=None
    ) -> Tensor:
        """Return images (N, 3, H, W) in [0, 1] within eps of those given; the victim is left bit-identical.

        begin: images within eps of those given, where the walk starts instead of at its own `start`.

        Raises InputError for bad images, and for `Guides` that are needed and missing or of another number.
        """
        check_images(images)
        for part in self.needs:
            if (given := getattr(guides, part, None)) is None or len(given) != len(images):
                lacks = f"{self.name}: guides.{part} must hold one row for each of the {len(images)} images"
                raise InputError(f"{lacks}; let `craft` take guides from a store with two or more identities")
        modality = check_modality(modality, len(images))
        with frozen(model), torch.enable_grad():
            images = images.detach().clone()  # what inference_mode made takes no part in a gradient
            objective = self.objective(Target(model, images, modality, guides, seed))
            if begin is not None:
                return self.walk(objective, images, modality, project(begin, images, self.eps))
            seeds = [seed, *(generator_for(seed, Stream.RESTART, n).initial_seed() for n in range(1, self.restarts))]
            found = [self.walk(objective, images, modality, self.start(images, modality, each)) for each in seeds]
            if len(found) == 1:
                return found[0]
            with torch.no_grad():
                best = torch.stack([objective(adversarial, self.steps) for adversarial in found]).argmax(0)
        return torch.stack(found)[best, torch.arange(len(images))]

    def walk(self, objective: Objective, images: Tensor, modality: ModalityLike, begin: Tensor) -> Tensor:
        """Return what the steps make of images, (N, 3, H, W), from where they begin, within eps."""
        adversarial, velocity = begin, torch.zeros_like(images)
        for step in range(self.steps):
            gained = objective(adversarial.requires_grad_(), step).sum()
            (gradient,) = torch.autograd.grad(gained, adversarial)
            gradient = tie_infrared(gradient, modality, self.tied)
            size = gradient.abs().mean((1, 2, 3), keepdim=True).clamp(min=torch.finfo(gradient.dtype).tiny)
            velocity = self.momentum * velocity + gradient / size
            # The gradient is taken at an image already clipped, so no clip stands in its way.
            adversarial = project(adversarial.detach() + self.rate * velocity.sign(), images, self.eps)
        return adversarial

    def gained(self, model, images: Tensor, found: Tensor, modality: ModalityLike, guides=None, seed=0) -> Tensor:
        """Return what the attack maximises at images that were found for some images, (N,), as a next step sees it."""
        with frozen(model), torch.no_grad():
            return self.objective(Target(model, images, modality, guides, seed))(found, self.steps)

    def start(self, images: Tensor, modality: ModalityLike, seed: int) -> Tensor:
        """Return where the walk begins: the images, or uniform noise of +-eps on them."""
        if not self.random_start:
            return images.clone()
        shift = self.eps * noise("uniform", images.shape, seed).to(images)
        return project(images + tie_infrared(shift, modality, self.tied), images, self.eps)


class PGD(ImageAttack):
    """Up the cross-entropy to the class the victim itself predicts, so no label is needed. Madry et al. 2018, eq. 3."""

    name = "pgd"
    knows = "the victim's weights and its classifier; the query alone"
    random_start = True

    def objective(self, target: Target) -> Objective:
        predicted = target.model(target.images, target.modality).logits.argmax(1)
        return lambda x, step: F.cross_entropy(target.model(x, target.modality).logits, predicted, reduction="none")


@dataclass(frozen=True, kw_only=True)
class FGSM(PGD):
    """One step of eps up the same, from the image. Goodfellow et al. 2015; U-turn, generate_attack_query.py:136-144."""

    name = "fgsm"
    random_start = False
    steps: int = field(default=1, init=False)
    step_size: float | None = field(default=None, init=False)

    @property
    def rate(self) -> float:
        return self.eps


class MetricFGSM(ImageAttack):
    """Away from the features of the same person, sum over guides of `|f(x') - f_guide|^2`; Bai et al., on galleries."""

    name = "metric-fgsm"
    knows = "the victim's weights; other images of the same person"
    stays = "its gradient is zero there, as at an image without another of its person and spectrum for a guide"
    needs = ("same",)

    def objective(self, target: Target) -> Objective:
        return lambda x, step: (target.features(x)[:, None] - target.guides.same).square().sum((1, 2))


@dataclass(frozen=True, kw_only=True)
class MFGSM(MetricFGSM):
    """Metric-FGSM with momentum 1 (MI-FGSM's rule), M-FGSM in the tables of CMPS."""

    name = "m-fgsm"
    momentum: float = 1.0


class SMA(ImageAttack):
    """Self metric attack: away from the image's own clean feature, `|f(x') - f(x)|^2`, whose gradient is 0 at x' = x.

    Source: Bouniot et al. 2020 (adv-reid, gen_adv.py:116).
    """

    name = "sma"
    random_start = True

    def objective(self, target: Target) -> Objective:
        clean = target.features(target.images).detach()
        return lambda x, step: (target.features(x) - clean).square().sum(1)


class FNA(ImageAttack):
    """Furthest-negative attack: away from the same person, towards the farthest other: `sum|f - same|^2 - |f - far|^2`.

    Source: Bouniot et al. 2020 (adv-reid, adv_evaluation.py:596-604, 667-701).
    """

    name = "fna"
    knows = "the victim's weights; other images of the same person and of others, with their identities"
    needs = ("same", "far")

    def objective(self, target: Target) -> Objective:
        def away_and_to(x: Tensor, step: int) -> Tensor:
            f = target.features(x)
            return (f[:, None] - target.guides.same).square().sum((1, 2)) - (f - target.guides.far).square().sum(1)

        return away_and_to


class ODFA(ImageAttack):
    """Opposite-direction feature attack: towards minus the clean feature, -MSE(f(x'), -f(x)).

    On features of length 1, `|f' + f|^2 = 4 - |f' - f|^2`: SMA's ascent, so that of the two one counts. Its zero
    gradient at the start the published code leaves to rounding.
    Source: Zheng et al., "U-turn", generate_attack_query.py:199-229.
    """

    name = "odfa"
    random_start = True

    def objective(self, target: Target) -> Objective:
        opposite = -target.features(target.images).detach()
        return lambda x, step: -(target.features(x) - opposite).square().mean(1)


@dataclass(frozen=True, kw_only=True)
class LTA(ImageAttack):
    """Local transformation attack: away from the clean image with one rectangle turned grey, drawn anew each step.

    Published without a random start. Infrared images are grey already, so there LTA is SMA with momentum.
    Source: Gong et al. (LTA.py:68-114), whose bounds check swaps height and width.
    """

    name = "lta"
    random_start = True
    momentum: float = 1.0

    def objective(self, target: Target) -> Objective:
        def away(x: Tensor, step: int) -> Tensor:
            grey = locally_grey(target.images, generator_for(target.seed, 1 + step))
            return (target.features(x) - target.features(grey).detach()).square().sum(1)

        return away


IMAGE_SPECIFIC = {attack.name: attack for attack in (FGSM, PGD, MetricFGSM, MFGSM, SMA, FNA, ODFA, LTA)}


def locally_grey(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return images (N, 3, H, W) with a rectangle of each turned grey; where none of 20 draws fits, an image stays."""
    height, width = images.shape[-2:]
    area, aspect, down, right = torch.rand(len(images), 20, 4, generator=generator, dtype=torch.float64).unbind(2)
    area = (AREA[0] + (AREA[1] - AREA[0]) * area) * height * width
    aspect = ASPECT[0] + (ASPECT[1] - ASPECT[0]) * aspect
    tall, wide = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    chosen = ((tall <= height) & (wide <= width)).int().argmax(1, keepdim=True)  # the first that fits
    tall, wide, down, right = (value.gather(1, chosen)[..., None] for value in (tall, wide, down, right))
    top, left = (down * (height - tall + 1)).floor(), (right * (width - wide + 1)).floor()
    rows, columns = torch.arange(height)[:, None], torch.arange(width)
    inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
    inside &= (tall <= height) & (wide <= width)
    return torch.where(inside[:, None].to(images.device), luma(images), images)


class GuideBank:
    """Clean features of one modality of a store, by identity, from which guides are taken."""

    def __init__(self, model: nn.Module, store: ImageStore, modality: Modality, batch_size: int = 64) -> None:
        modality, batch_size = one_modality(modality), whole("guides", "batch_size", batch_size, 1)
        if not len(rows := np.flatnonzero(store.modalities.numpy() == modality)):
            raise InputError(f"guides: no {modality.name.lower()} image in the guide store; guides share the modality")
        with frozen(model):
            self.features = over_crops(lambda x, _: model.embed(x, modality), model, store, rows, size=batch_size)
        identities = np.array([store.records[row].identity for row in rows])
        self.number = {identity: number for number, identity in enumerate(dict.fromkeys(identities.tolist()))}
        members = [np.flatnonzero(identities == identity) for identity in self.number]
        most = max(map(len, members))  # those of an identity with fewer images come again in turn
        self.places = torch.tensor(np.stack([np.resize(places, most) for places in members])).to(self.features.device)
        self.means = torch.stack([self.features[places].mean(0) for places in members])

    def guides(self, features: Tensor, identities: Sequence[int]) -> Guides:
        """Return the guides of N images with these clean features (N, D) and identities."""
        for lacking in sorted(set(identities) - set(self.number)):
            raise InputError(f"guides: no image of identity {lacking} in this modality of the guide store")
        own = torch.tensor([self.number[identity] for identity in identities], device=features.device)
        distance = torch.cdist(features, self.means).scatter(1, own[:, None], -1.0)
        far = self.means[distance.argmax(1)] if len(self.means) > 1 else None
        return Guides(self.features[self.places[own]], far)


class AdversarialStore(ImageStore):
    """Attacked crops and the clean ones, (N, 3, H, W) float32 in [0, 1] on the CPU.

    gained: what the attack maximises, (N,) each, where the walk ends from its own start, at the delta that it was to
    start from, and where the walk from there ends; empty where it had no delta.
    """

    def __init__(self, records: Sequence[Record], images: Tensor, clean: Tensor, gained: dict | None = None) -> None:
        super().__init__(images, records)
        self.clean, self.gained = clean, gained or {}
        self.changed = torch.tensor([not torch.equal(*pair) for pair in zip(images, clean, strict=True)], dtype=bool)

    @property
    def moved(self) -> int:
        """How many of the images the attack changed in any pixel."""
        return int(self.changed.sum())

    def batch(self, indices: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
        return self.images[torch.as_tensor(indices)].to(device)

    def rounded(self, eps: float) -> "AdversarialStore":
        """Return the store as image files hold it: 8 bits, still within eps of the clean crops."""
        return AdversarialStore(self.records, to_8_bits(self.images, self.clean, eps), self.clean)


@torch.no_grad()
def craft(
    attack: ImageAttack,
    model: nn.Module,
    store: ImageStore,
    *,
    guide_store: ImageStore | None = None,
    begin: Perturbation | None = None,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = False,
) -> AdversarialStore:
    """Attack every crop of a store, in batches of one modality, on the model's device.

    Args:
        begin: where every walk starts, a point of each image's own problem; the usual walk is made beside it, and what
            both gained is told.
        guide_store: an ImageStore of guides, images of the crop's own modality and identity, better more than one: a
            lone crop guided by itself starts at a zero gradient. None stands for the store itself, as in adv-reid.

    Raises InputError where `begin` has a larger budget than the attack, or free channels where the attack ties them.
    """
    if begin is not None and (begin.budget > attack.eps * (1 + 1e-6) or (attack.tied and not begin.tied)):
        raise InputError(f"{attack.name}: it starts from a delta of its own eps, tied as it is, or from a smaller one")
    gained = torch.empty(len(STARTS), len(store) if begin is not None else 0)
    guide_store = store if guide_store is None else guide_store
    batch_size = whole("craft", "batch_size", batch_size, 1)
    images, clean = (torch.empty(len(store), 3, *store.images.shape[1:3]) for _ in range(2))
    with tqdm(total=len(store), unit="crop", desc=attack.name, disable=not progress) as bar:
        for modality in Modality:
            if not len(rows := np.flatnonzero(store.modalities.numpy() == modality)):
                continue
            bank = GuideBank(model, guide_store, modality, batch_size) if attack.needs else None
            for number, chunk in enumerate(np.split(rows, range(batch_size, len(rows), batch_size))):
                batch, people = images_of(store, chunk, model), [store.records[row].identity for row in chunk]
                guides = bank and bank.guides(model.embed(batch, modality), people)
                how = guides, generator_for(seed, modality, number).initial_seed()
                attacked = usual = attack(model, batch, modality, *how)
                if begin is not None:
                    at = begin.apply(batch, modality)
                    attacked = attack(model, batch, modality, *how, begin=at)
                    for row, end in zip(gained, (usual, at, attacked), strict=True):
                        row[chunk] = attack.gained(model, batch, end, modality, *how).float().cpu()
                images[chunk], clean[chunk] = attacked.float().cpu(), batch.float().cpu()
                bar.update(len(chunk))
    told = dict(zip(STARTS, gained, strict=True)) if begin is not None else None
    return AdversarialStore(store.records, images, clean, told)
