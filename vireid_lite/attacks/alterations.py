"""What a delta is without its place, or without its phases: controls that are as large as it is, to the digit.

Every alteration puts the values of each channel in other places. Their number of each size stays, and so do l1, l2 and
l-infinity. So does the amplitude spectrum: exactly where it is shifted, mirrored as it is where it is mirrored, and as
nearly as that allows where its phases are scrambled.
"""

import torch
from torch import Tensor

from vireid_lite.attacks.frozen import Stream, generator_for

ROUNDS = 50  #: of `phase_scrambled`


def phase_scrambled(delta: Tensor, seed: int) -> Tensor:
    """Return delta (3, H, W) with phases drawn by a seed.

    One angle for each frequency, in all channels, so that their relations, the colours, stay. That alone spreads the
    values out: of a delta that is +-eps everywhere, the peak would be three to four times eps. So two corrections take
    turns: the k-th largest value of a channel becomes the k-th largest of delta's own; and the amplitudes become
    delta's, with the angle, again one for all channels, that moves the picture least. The last word has the former.

    Source: Schreiber & Schmitz, "Improved surrogate data for nonlinearity tests", Phys. Rev. Lett. 77 (1996) 635; of
    several channels "Surrogate time series", Physica D 142 (2000) 346.
    """
    exact = delta.double()
    spectrum, (values, _) = torch.fft.rfft2(exact), exact.flatten(1).sort(1)
    drawn = torch.randn(delta.shape[-2:], generator=generator_for(seed, Stream.ALTERED), dtype=torch.float64)
    angle = torch.sgn(torch.fft.rfft2(drawn))
    angle[0, 0] = 1  # the mean stays
    for _ in range(ROUNDS):
        wanted = torch.fft.irfft2(spectrum * angle, s=delta.shape[-2:]).flatten(1)
        found = torch.empty_like(values).scatter(1, wanted.argsort(dim=1, stable=True), values).view_as(exact)
        angle = torch.sgn((torch.fft.rfft2(found) * spectrum.conj()).sum(0))
    return found.to(delta)


ALTERATIONS = {
    "no": None,
    "phase-scrambled": phase_scrambled,
    "mirrored": lambda delta, seed: delta.flip(-1),
    "shifted": lambda delta, seed: delta.roll([side // 2 for side in delta.shape[-2:]], (-2, -1)),
}
