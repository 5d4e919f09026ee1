"""What every attack must leave alone."""

import torch

from vireid_lite.attacks import build_attack, craft


def facts(model):
    """Return weights and statistics, modes, and gradients of a model, as values that `same_facts` compares."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    return state, modes, [(p.requires_grad, p.grad) for p in model.parameters()]


def same_facts(before, after):
    """Return whether a model is bit-identical to what it was, in the same modes, without a gradient more."""
    return (
        before[1:] == after[1:]
        and before[0].keys() == after[0].keys()
        and all(torch.equal(value, after[0][name]) for name, value in before[0].items())
    )


def attack_and_check(model, store, name, **options):
    """Run an attack by name; assert a delta within the budget that is not zero, and a model bit-identical to before."""
    before = facts(model)
    attack = build_attack(name, **options)
    if hasattr(attack, "fit"):
        delta = attack.fit(model, store, 0).delta
        deltas = list(delta.values()) if isinstance(delta, dict) else [delta]
    else:
        found = craft(attack, model, store)
        assert torch.isfinite(found.images).all()
        deltas = [found.images - found.clean]
    assert same_facts(before, facts(model))
    for delta in deltas:
        assert delta.abs().max() <= attack.eps + 1e-6
        assert delta.any()
