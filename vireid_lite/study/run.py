"""What a run computes, as its card holds it: a victim scored, or attacked, in both directions; and as commands do."""

import contextlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from vireid_lite import metrics
from vireid_lite.attacks import ImageAttack, ModifiedVictim, UniversalAttack, craft, load_perturbation
from vireid_lite.attacks.frozen import taught, training_store, weights_hash
from vireid_lite.attacks.perturbation import resized
from vireid_lite.data import Dataset, Modality, SyntheticVI, Trial, cached, fingerprint
from vireid_lite.errors import SPLITS, InputError, check_choice
from vireid_lite.files import stable_hash, write_atomically
from vireid_lite.metrics.anatomy import Anatomy, anatomy, unshifted, within_modality
from vireid_lite.metrics.attraction import attraction
from vireid_lite.metrics.evaluation import Evaluation, check_unseen, direction_name, distinct, evaluate
from vireid_lite.models.checkpoints import load_checkpoint
from vireid_lite.models.official import load_official
from vireid_lite.study.cards import plain
from vireid_lite.victims import load_or_train, tier_dataset, tier_named

# Why the queries of a perturbation in 8 bits may stay as they were.
ROUNDED = "what it adds there is zero, leaves [0, 1] or is less than a level of 8 bits"
Victim = tuple[nn.Module, dict, Dataset]  #: on its device, its card, and the data at its size


def score_modified(modified: ModifiedVictim, dataset: Dataset, device: torch.device | str = "cpu") -> dict:
    """Return a modified victim's scores as its card holds them, by direction.

    "scores": queries and gallery perturbed as in training (clean, where it was trained without noise), the reading of
    the paper's text. "scores_query": queries alone perturbed. "scores_clean": nothing perturbed. "within": rank-1 of
    queries ranked against clean images of their own modality, "clean" and "perturbed".
    """
    model, add = modified.model, modified.perturbation and modified.perturbation.apply
    results: dict = {"scores": {}}
    for modality in Modality:
        name, trials = direction_name(modality), dataset.trials(modality)
        options = {"trials": trials, "device": device, "progress": False}
        clean = evaluate(model, dataset, modality, **options)
        identities = np.array([record.identity for record in distinct(trials, "query")])
        within, found = {"clean": within_modality(clean.query, clean.query, identities)[0]}, {"scores": clean}
        if add is not None:
            query = evaluate(model, dataset, modality, perturb=add, clean=clean, **options)
            both = evaluate(model, dataset, modality, perturb=add, perturb_gallery=add, **options)
            within["perturbed"] = within_modality(query.query, clean.query, identities)[0]
            found = {"scores": both, "scores_query": query, "scores_clean": clean}
        for key, scored in found.items():
            results.setdefault(key, {})[name] = scores_for_card(scored)
        results.setdefault("within", {})[name] = within
    return results


class Attacked(NamedTuple):
    """What one attack did to one victim: `made`, the perturbation of a universal attack or None, and its scores.

    Attributes:
        clean, exact, rounded: both directions without the attack, with attacked images as floats, and in 8 bits.
        anatomies: of the rounded images.
        beside: by direction what stands beside an anatomy: "unshifted" and "attraction", where there are any.
        gained: by direction what an attack that starts from a delta gained on average, as `AdversarialStore` has it.
        seconds: of crafting, without scoring.
        transferred: whether another network than the one scored was attacked.
    """

    made: object
    clean: list[Evaluation]
    exact: list[Evaluation]
    rounded: list[Evaluation]
    anatomies: list[Anatomy]
    seconds: float
    transferred: bool = False
    beside: Sequence[dict] = ()
    gained: Sequence[dict] = ()

    @property
    def moved(self) -> int:
        """How many query images of both directions the attack changed in any pixel, as floats."""
        return sum(each.moved for each in self.exact)

    def describe(self) -> dict:
        """Return everything as a run card holds it, directions by name, `history` thinned to a dozen steps.

        Each set of attacked scores gains "difference": rank-1 and mAP minus the clean ones on the same queries, with
        the 95 % interval of the paired bootstrap over identities; a transferred attack's also "broken".
        """
        names = [direction_name(result.query_modality) for result in self.clean]
        results: dict = {"clean": {}, "scores": {}, "scores_8_bit": {}}
        for name, clean, exact, rounded in zip(names, self.clean, self.exact, self.rounded, strict=True):
            results["clean"][name] = {score: getattr(clean, score) for score in ("rank1", "mAP", "mINP")}
            how = {"difference": difference(clean, exact), "moved": exact.moved}
            results["scores"][name] = {**scores_for_card(exact), **how}
            # What does not depend on the attack stands once, beside the exact scores.
            kept = {key: v for key, v in scores_for_card(rounded).items() if "chance" not in key and key != "minimum"}
            how = {"difference": difference(clean, rounded), "moved": rounded.moved}
            results["scores_8_bit"][name] = {**kept, **how}
            if self.transferred:
                results["scores_8_bit"][name]["broken"] = broken(clean, rounded)
        if self.anatomies:
            taken = zip(names, self.anatomies, self.beside, strict=True)
            results["anatomy"] = {name: {**a.describe(), **more} for name, a, more in taken}
        if self.gained:
            results["gained"] = dict(zip(names, self.gained, strict=True))
        history = self.made.history if self.made is not None else []
        results["history"] = history[:: max(1, len(history) // 10)] + history[-1:]
        return {**results, "craft_seconds": self.seconds}


def run_attack(
    attack: UniversalAttack | ImageAttack,
    model: nn.Module,
    dataset: Dataset,
    *,
    seed: int = 0,
    identities: int | None = None,
    learn_from: str = "train",
    start: UniversalAttack | None = None,
    split: str = "test",
    state_path: Path | None = None,
    take_apart: bool = False,
    surrogate: tuple[nn.Module, Dataset] | None = None,
    keep: Path | None = None,
    clean: list[Evaluation] | None = None,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Attacked:
    """Attack the queries of both directions and score them, as floats and after rounding to 8 bits.

    Args:
        identities: how many identities a universal attack learns from; None for all.
        learn_from: whose they are, one of LEARN_FROM.
        start: the universal attack from whose delta an image-specific attack starts; None for its own start.
        split: one of SPLITS.
        state_path: where a killed fit is noted.
        take_apart: compute the anatomy of the drop as well.
        surrogate: the network attacked instead, and the data a universal attack learns from; its delta is resized.
        keep: where a universal attack's perturbation is kept, and read from: one surrogate serves many targets.
        clean: scores without the attack where they are known already.
    """
    made, attacked, gained, trials = None, [], [], {m: trials_of(dataset, m, split) for m in Modality}
    source, learned_from = surrogate or (model, dataset)
    taught(learned_from, identities, learn_from)
    learner = attack if isinstance(attack, UniversalAttack) else start
    clean = clean or clean_scores(model, dataset, split, device)
    started = time.perf_counter()
    check_unseen(source, dataset, [*trials[Modality.VISIBLE], *trials[Modality.INFRARED]], "surrogate")
    if learner is not None:
        if keep is not None and keep.exists():
            made = load_perturbation(keep)
            started -= made.made_by["fit_seconds"]  # as long as it took when it was made
        else:
            store = training_store(learned_from, identities, progress, learn_from)
            how = {"state_path": state_path, "progress": progress}
            made = replace(learner, altered="no").fit(source, store, seed, **how)
            if keep is not None:
                made.made_by = {**made.made_by, "fit_seconds": time.perf_counter() - started}
                made.save(keep)
        made = learner.alter(made, seed)
        if learned_from.size != dataset.size:
            made = resized(made, dataset.size)
    if learner is attack:
        attacked = [({"perturb": made.apply}, {"perturb": made.apply_rounded}) for _ in Modality]
    else:
        for modality in Modality:
            queries = cached(dataset, distinct(trials[modality], "query"), progress)
            crafted = craft(attack, source, queries, begin=made, seed=seed, progress=progress)
            if at := crafted.gained:  # "delta ahead": how often the walk from its own start missed a better point
                ahead = float((at["delta"] > at["own start"]).float().mean())
                gained.append({**{name: float(values.mean()) for name, values in at.items()}, "delta ahead": ahead})
            attacked.append(({"query_store": crafted}, {"query_store": crafted.rounded(attack.eps)}))
    seconds = time.perf_counter() - started
    options = {"device": device, "progress": False}
    exact, rounded = (
        [evaluate(model, dataset, m, trials=trials[m], clean=clean[m], **attacked[m][p], **options) for m in Modality]
        for p in (0, 1)
    )
    anatomies, beside, others = [], [], dataset.val if split == "test" else []
    for m in Modality if take_apart else ():  # of one trial: of several, the first
        known = (clean[m], rounded[m]) if len(trials[m]) == 1 else None
        how = {"trial": trials[m][0], "evaluated": known, "device": device, **attacked[m][1]}
        anatomies.append(anatomy(model, dataset, m, **how))
        both, more = (model, dataset, clean[m], rounded[m]), {}
        if learner is attack and others:
            more["unshifted"] = unshifted(*both, made.apply_rounded, others, device)
        if isinstance(dataset, SyntheticVI):
            more["attraction"] = attraction(*both, device=device)
        beside.append(more)
    made = made if learner is attack else None
    return Attacked(made, clean, exact, rounded, anatomies, seconds, surrogate is not None, beside, gained)


def trials_of(dataset: Dataset, query_modality: Modality, split: str) -> list[Trial]:
    """Return the trials of one direction of one of SPLITS."""
    check_choice("run", "split", split, SPLITS)
    return dataset.trials(query_modality) if split == "test" else [dataset.val_trial(query_modality, split)]


def clean_scores(
    model: nn.Module, dataset: Dataset, split: str = "test", device: torch.device | str = "cpu", progress: bool = False
) -> list[Evaluation]:
    """Return the scores of both directions without any attack."""
    options = {"device": device, "progress": progress}
    return [evaluate(model, dataset, m, trials=trials_of(dataset, m, split), **options) for m in Modality]


def told_moved(stays: str, *scored: Sequence[Evaluation]) -> str:
    """Return the line that says how many queries an attack moved, as floats and in 8 bits, and why not all.

    Args:
        stays: why it may leave an image as it was.
        scored: both directions, one list or, rounded, a second one. Raises InputError where the first moved none.
    """
    counts, total = [sum(e.moved for e in each) for each in scored], sum(len(e.query) for e in scored[0])
    if not counts[0]:
        what = f"attack: none of {total} query images is moved, so there is nothing to score: {stays}"
        raise InputError(f"{what}; choose another attack, budget or data")
    said = f"moved {counts[0]} of {total} query images" + "".join(f", {count} in 8 bits" for count in counts[1:])
    why = [stays] * (counts[0] < total) + ["less than a level of 8 bits is rounded away"] * (counts[-1] < counts[0])
    return "; ".join([said, *why])


def difference(clean: Evaluation, attacked: Evaluation) -> dict[str, dict[str, float]]:
    """Return attacked minus clean rank-1 and mAP, each with its 95 % interval: difference, low, high."""
    before, after = clean.per_identity, attacked.per_identity
    pairs = {"rank1": (before.rank1, after.rank1), "mAP": (before.ap, after.ap)}
    people = before.identity, before.queries
    return {name: metrics.paired_bootstrap(*pair, *people)._asdict() for name, pair in pairs.items()}


def broken(clean: Evaluation, attacked: Evaluation) -> float:
    """Return the share of queries ranked right before the attack (rank-1) that are ranked wrong after it, in [0, 1].

    One of several things "transfer success rate" may mean: the CMPS paper's Table 4 does not define it. Two noisy
    rankings break some as well: read it beside that of noise. Trials are pooled. NaN where nothing was right before.
    """
    both = ([trial.per_query_rank1 for trial in each.trials] for each in (clean, attacked))
    before, after = (np.concatenate(trials) > 0 for trials in both)
    return float((before & ~after).sum() / before.sum()) if before.any() else float("nan")


def scores_for_card(result: Evaluation) -> dict:
    """Return one direction's scores as a card holds them: no path, no label, identities in a fixed anonymous order."""
    chance, people, names = result.chance, result.per_identity, ("rank1", "mAP", "mINP")
    own = [(float(t.cmc[0]), t.mAP, t.mINP, t.valid_queries) for t in result.trials]
    return {
        **{name: getattr(result, name) for name in (*names, "cmc")},
        "trials": [dict(zip((*names, "valid_queries"), trial, strict=True)) for trial in own],
        "chance": {name: getattr(chance.independent, name)._asdict() for name in names},
        "chance_cmc": chance.independent.cmc,
        "minimum": chance.minimum._asdict(),
        "identity_rank1": people.rank1,
        "identity_AP": people.ap,
        "identity_queries": people.queries,
    }


def victim_and_data(
    tier: str,
    checkpoint: Path | None,
    official: tuple[Path, str | None] | None,
    open_data: Callable,
    seed: int,
    device: torch.device,
    allow_seen_people: bool = False,
) -> Victim:
    """Return the victim on its device, its card, and the data, which `open_data` opens at the size it was trained
    on: () where its card does not say, None where there is none.

    Without `checkpoint` and `official`, as `load_official` takes it, it is the tier's victim of the synthetic set.
    allow_seen_people: let people be ranked that it was trained on; otherwise refused, or said where nothing says who.
    """
    # Crops of another size than the victim was trained on would be scored without a word.
    model, card = load_checkpoint(checkpoint) if checkpoint else load_official(*official) if official else (None, {})
    said = card.get("dataset")
    data = open_data(None if model is None else (isinstance(said, dict) and said.get("size")) or ())
    if model is None:
        print(f"no --checkpoint: the {tier} victim, trained on the synthetic set", file=sys.stderr)
        model, card = load_or_train(tier_named(tier).recipe, tier_dataset(tier, "synthetic"), seed=seed, device=device)
    if model.people is None and (said.get("name", data.name) if isinstance(said, dict) else data.name) == data.name:
        unknown = "nothing says which people the victim was trained on; make sure that none of them is ranked"
        print(f"{checkpoint or official[0]}: {unknown}", file=sys.stderr)
    model.people = None if allow_seen_people else model.people
    return model.to(device).eval(), card, data


def evaluate_victim(
    victim: Victim, directions: Sequence[Modality], out: Path, split: str, made=None, device="cpu"
) -> list[tuple[Evaluation, Evaluation | None, dict | None]]:
    """Score some directions, write out/scores.json; return each's scores, those under `made`, and the difference.

    Raises InputError where `made` moves no query.
    """
    model, _, dataset = victim
    perturbed = made and [weights_hash(made.tensors()), made.eps, made.tied, made.double]
    key = _claim(out, victim, split, [[int(modality) for modality in directions], perturbed])
    found, scores, before = [], {}, {}
    for modality in directions:
        name, options = direction_name(modality), {"trials": trials_of(dataset, modality, split), "device": device}
        check_unseen(made, dataset, options["trials"], "perturbation")
        clean, attacked, moved = evaluate(model, dataset, modality, **options), None, None
        before[name] = scores[name] = scores_for_card(clean)
        if made is not None:
            attacked = evaluate(model, dataset, modality, perturb=made.apply_rounded, **options)
            moved = difference(clean, attacked)
            scores[name] = {**scores_for_card(attacked), "difference": moved, "moved": attacked.moved}
        found.append((clean, attacked, moved))
    if made is not None:
        told_moved(ROUNDED, [attacked for _, attacked, _ in found])
    made_by = {} if made is None else {name: item for name, item in made.made_by.items() if name != "people"}
    more = {} if made is None else {"perturbation": made_by, "clean": before}
    _write_scores(out, victim, split, {"key": key, "scores": scores, **more})
    return found


def attack_victim(attack, victim: Victim, out: Path, split: str, **options: object) -> Attacked:
    """Attack a victim, or resume a killed attack; write out/scores.json and what a universal attack made beside it.

    Where no query moved (`Attacked.moved`), there is nothing to score and nothing is written.
    options: seed, identities and device, as `run_attack` takes them.
    """
    model, _, dataset = victim
    asked = {**attack.describe(), **{name: options.get(name) for name in ("seed", "identities")}}
    key = _claim(out, victim, split, [asked])
    state = out / f"state-{key}.pt"
    found = run_attack(attack, model, dataset, split=split, state_path=state, **options)
    if not found.moved:
        return found
    _write_scores(out, victim, split, {"key": key, "attack": asked, **found.describe()})
    if found.made is not None:
        found.made.save(out / "perturbation.safetensors")
    state.unlink(missing_ok=True)
    return found


def _claim(out: Path, victim: Victim, split: str, asked: list) -> str:
    """Return the key of what a command is asked for; InputError where its folder holds what another one wrote."""
    model, _, dataset = victim
    ranked = (side for modality in Modality for trial in trials_of(dataset, modality, split) for side in trial)
    images = fingerprint([*dataset.train, *(record for side in ranked for record in side)], dataset)
    key = stable_hash([dataset.describe(), images, weights_hash(model), split, *asked])
    theirs, notes = None, [path for path in out.glob("state-*.pt") if path.stem != f"state-{key}"]
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
        theirs = json.loads((out / "scores.json").read_text())["key"]
    if found := notes or (_outputs(out) if theirs != key else []):
        left = " (a killed attack, which its own command resumes)" if notes else ""
        what = f"{found[0].name}{left} there is of another command, other data or another victim"
        raise InputError(f"{out}: {what}; give another folder with --out-dir, or move this one away")
    return key


def _outputs(out: Path) -> list[Path]:
    """Return what commands left in a folder."""
    figures = ("rankings {}", "rankings {} attacked", "attacked {}")
    drawn = [name.format(direction_name(way)).replace(" ", "_") + ".png" for name in figures for way in Modality]
    return [path for name in ("scores.json", "perturbation.safetensors", *drawn) if (path := out / name).exists()]


def _write_scores(out: Path, victim: Victim, split: str, facts: dict) -> None:
    """Write out/scores.json: some facts beside what was scored; what the same command left before is made again."""
    for path in _outputs(out):
        path.unlink()
    known = {"dataset": victim[2].describe(), "split": split, "victim": victim[1].get("key")}
    if victim[0].people is None and "people" in victim[1]:
        known["allow_seen_people"] = True
    facts = known | facts
    write_atomically(out / "scores.json", json.dumps(facts, indent=1, default=plain).encode())
