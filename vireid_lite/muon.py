"""Muon for the weights of convolutions: each step is the momentum made orthogonal; AdamW moves everything else."""

import torch
from torch import Tensor

# Coefficients of the Newton-Schulz polynomial (K. Jordan, "Muon", 2024).
FIRST, SECOND, THIRD = 3.4445, -4.7750, 2.0315


class Muon(torch.optim.AdamW):
    """AdamW, but groups that hold a "momentum" are moved by Muon with Nesterov's momentum.

    A weight (out, in, kh, kw) is read as a matrix, out x rest. Weight decay is decoupled, as in AdamW.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Move every weight that has a gradient; the gradients of Muon's weights are spent."""
        for group in self.param_groups:
            for weight in group["params"] if "momentum" in group else ():
                moving = self.state[weight].setdefault("moving", torch.zeros_like(weight))
                moving.mul_(group["momentum"]).add_(weight.grad)
                step = orthogonal(weight.grad.add(moving, alpha=group["momentum"]).flatten(1))
                rows, columns = step.shape
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(step.view_as(weight), alpha=-group["lr"] * max(1, rows / columns) ** 0.5)
                weight.grad = None
        super().step()


def orthogonal(matrix: Tensor, steps: int = 3) -> Tensor:
    """Return roughly U V^T of a matrix U S V^T, by Newton-Schulz steps on the smaller Gram matrix."""
    if len(matrix) > matrix.shape[1]:
        return orthogonal(matrix.mT, steps).mT
    matrix = matrix / (matrix.norm() + 1e-7)
    gram, product = matrix @ matrix.mT, torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    for _ in range(steps):
        polynomial = SECOND * gram + THIRD * gram @ gram
        polynomial.diagonal().add_(FIRST)
        product, gram = polynomial @ product, polynomial @ gram @ polynomial
    return product @ matrix
