"""The hetero-centre loss: against loops, where it vanishes, its gradient, and what it refuses."""

import pytest
import torch

from vireid_lite.errors import InputError
from vireid_lite.losses import hetero_centre_loss

LABELS = torch.tensor([7, 2, 2, 7, 5, 2, 5, 7, 5])  # in no order, and not one image of each modality
MODALITY = torch.tensor([1, 0, 1, 0, 0, 0, 1, 0, 1])


def features(columns=4, seed=0):
    return torch.randn(len(LABELS), columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def by_loops(rows, labels, modality):
    """Sum over identities and dimensions of the squared difference of two means."""
    total = 0.0
    for identity in sorted(set(labels.tolist())):
        for column in range(rows.shape[1]):
            means = []
            for spectrum in (0, 1):
                members = [
                    rows[i, column].item()
                    for i in range(len(rows))
                    if labels[i].item() == identity and modality[i].item() == spectrum
                ]
                means.append(sum(members) / len(members))
            total += (means[0] - means[1]) ** 2
    return total


def test_equals_loops():
    assert hetero_centre_loss(features(), LABELS, MODALITY).item() == pytest.approx(
        by_loops(features(), LABELS, MODALITY)
    )


def test_a_case_worked_by_hand():
    # Identity 0: visible mean (1, 0), infrared (4, 4), so 25; identity 1: 0 and 2 in the first column, so 4.
    rows = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 0.0], [4.0, 4.0], [2.0, 0.0]])
    loss = hetero_centre_loss(rows, torch.tensor([0, 0, 1, 0, 1]), torch.tensor([0, 0, 0, 1, 1]))
    assert loss.item() == 29


def test_zero_if_and_only_if_the_centres_coincide():
    rows = torch.tensor([[-3.0, 1.0], [3.0, 1.0], [0.0, -4.0], [0.0, 6.0]], dtype=torch.float64)
    labels, modality = torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 1, 1])
    assert hetero_centre_loss(rows, labels, modality) == 0  # no two rows are equal
    for index in range(4):
        moved = rows.clone()
        moved[index, 0] += 1e-3
        assert hetero_centre_loss(moved, labels, modality).item() == pytest.approx(2.5e-7)  # (1e-3 / 2)^2
    apart = torch.tensor([0, 1, 0, 1])  # the same rows, two identities whose centres do not coincide
    assert hetero_centre_loss(rows, apart, modality) > 1


def test_features_side_by_side_add_up():
    parts = [features(seed=seed) for seed in range(3)]
    expected = sum(by_loops(part, LABELS, MODALITY) for part in parts)
    assert hetero_centre_loss(torch.cat(parts, 1), LABELS, MODALITY).item() == pytest.approx(expected)


def test_gradient_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(
        lambda rows: hetero_centre_loss(rows, LABELS, MODALITY), features().requires_grad_()
    )


def test_a_missing_modality_is_not_passed_over():
    assert hetero_centre_loss(features(), LABELS, torch.where(LABELS == 2, 0, MODALITY)).isnan()


@pytest.mark.parametrize(
    ("rows", "labels", "modality"),
    [
        (features()[:, 0], LABELS, MODALITY),
        (features(), LABELS[:-1], MODALITY),
        (features(), LABELS, MODALITY[:-1]),
        (features(), LABELS, torch.tensor(0)),
    ],
)
def test_other_shapes_are_refused(rows, labels, modality):
    with pytest.raises(InputError, match=r"features must be \(N, D\)") as caught:
        hetero_centre_loss(rows, labels, modality)
    assert "\n" not in str(caught.value)
