"""What every attack must leave alone, and what every fit and perturbation keeps."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from vireid_lite.attacks import build_attack, craft, descent
from vireid_lite.data import ImageStore, Modality
from vireid_lite.errors import InputError


def facts(model):
    """Return weights and statistics, modes, and gradients of a model, as values that `same_facts` compares."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    return state, modes, [(p.requires_grad, p.grad) for p in model.parameters()]


def same_facts(before, after):
    """Return whether a model is bit-identical to what it was, in the same modes, without a gradient more."""
    return before[1:] == after[1:] and same_tensors(before[0], after[0])


def same_tensors(one, other):
    """Return whether two dicts of tensors are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def rows_of(store, modality):
    """Return the rows of a store's crops of one modality."""
    return np.flatnonzero(store.modalities.numpy() == modality)


def only(store, kept):
    """Return a store of some of another's crops: those at rows, or of whose records `kept` says so."""
    rows = [row for row, record in enumerate(store.records) if kept(record)] if callable(kept) else kept
    return ImageStore(np.array(store.images[rows]), [store.records[row] for row in rows])


@contextmanager
def stem_counts(model):
    """Yield how many images pass each stem inside the block, by modality."""
    counts, stems = dict.fromkeys(Modality, 0), model.stages[0]

    def counting(modality):
        return lambda _, given, __: counts.update({modality: counts[modality] + len(given[0])})

    pairs = zip(Modality, (stems.visible, stems.infrared), strict=True)
    hooks = [stem.register_forward_hook(counting(modality)) for modality, stem in pairs]
    yield counts
    for hook in hooks:
        hook.remove()


def check_attacked(attacked, images, budget, tied=False):
    """Assert that attacked images keep the budget and [0, 1], and have equal channels where tied, to the bit."""
    assert (attacked - images).abs().max() <= budget
    assert 0 <= attacked.min() <= attacked.max() <= 1
    assert not tied or torch.equal(attacked, attacked[:, :1].expand_as(attacked))


def check_applied(found, again, store):
    """Assert that a perturbation keeps its budget in floats and in 8 bits, and that another does the same."""
    for modality in Modality:
        images = store.batch(rows_of(store, modality))
        kept, rounded = images.clone(), found.apply_rounded(images, modality)
        for attacked in (found.apply(images, modality), rounded):
            check_attacked(attacked, images, found.budget + 1e-6, found.tied and modality == Modality.INFRARED)
        assert torch.equal((rounded * 255).round() / 255, rounded)
        assert torch.equal(images, kept)
        assert torch.equal(found.apply(images, modality), again.apply(images, modality))
        with pytest.raises(InputError, match=r"\[0, 1\]"):
            found.apply(images + 2, modality)


def check_resumes(attack, model, store, folder, monkeypatch, after=2, every=1):
    """Assert that a fit killed after some steps resumes there, to the same bits; return both notes' states."""
    monkeypatch.setattr(descent, "NOTE_EVERY", every)
    notes = folder / "whole.pt", folder / "killed.pt"
    whole, before = attack.fit(model, store, 3, state_path=notes[0]), facts(model)

    def kill(step, _):
        if step == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attack.fit(model, store, 3, state_path=notes[1], watch=kill)
    assert same_facts(before, facts(model))
    steps = []
    found = attack.fit(model, store, 3, state_path=notes[1], watch=lambda step, _: steps.append(step))
    assert steps == list(range(after, attack.steps)), "the finished steps are not repeated"
    assert same_tensors(found.tensors(), whole.tensors())
    assert found.history == whole.history
    with pytest.raises(InputError, match="other settings"):
        attack.fit(model, store, 4, state_path=notes[1])
    return [torch.load(note, weights_only=True)["state"] for note in notes]


def check_training_sees_what_apply_makes(attack, model, store, problem, state, rows):
    """Assert that a step's network sees what the perturbation of its state makes of the clean crops, tied as it is."""
    seen, found = [], attack.finish(state, [], 0)
    hook = model.stages[0].register_forward_pre_hook(lambda _, given: seen.append(given))
    attack.step(model, problem, state, 0, 0)
    hook.remove()
    (images, modality), (last, _) = seen[0], seen[-1]
    assert torch.equal(torch.as_tensor(modality).expand(len(rows)), store.modalities[rows])
    assert torch.allclose(images.detach(), found.apply(store.batch(rows), modality), rtol=0, atol=1e-6)
    assert torch.equal(last[8:, 0], last[8:, 2])


def attack_and_check(model, store, name, **options):
    """Run an attack by name; assert a delta within the budget that is not zero, and a model bit-identical to before."""
    before = facts(model)
    attack = build_attack(name, **options)
    if hasattr(attack, "fit"):
        deltas = attack.fit(model, store, 0).tensors().values()
    else:
        found = craft(attack, model, store)
        assert torch.isfinite(found.images).all()
        deltas = [found.images - found.clean]
    assert same_facts(before, facts(model))
    for delta in deltas:
        assert delta.abs().max() <= attack.eps + 1e-6
        assert delta.any()
