"""What every attack must leave alone."""

import torch


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
