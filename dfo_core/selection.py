"""Selection among mirrored candidates."""

from __future__ import annotations

import numpy as np

from dfo_core.validation import BoolArray, IntArray


def winners_of_pairs(order: IntArray, first: int) -> BoolArray:
    """Tell which candidates are recombined where they were sampled in mirrored pairs.

    Pairwise selection (Auger, Brockhoff & Hansen 2011, Mirrored Sampling in Evolution Strategies
    With Weighted Recombination, GECCO, Section 3.1): of two candidates mean + s and mean - s only
    the better one is. If both were, their steps would cancel out and the recombined step be
    shorter than the step-size control expects; the step size would shrink for no reason
    (Brockhoff et al. 2010, Mirrored Sampling and Sequential Selection for Evolution Strategies,
    PPSN). The winner's side is random where losses are, so the recombined step is distributed as
    without mirroring.

    Args:
        order: (n,) the candidates from best to worst.
        first: The first candidate of the first pair; pairs follow one another, candidates before
            and a last one without a partner always win.

    Returns:
        (n,) whether the candidate of each rank wins.
    """
    place = np.argsort(order)
    n_pairs = (len(order) - first) // 2
    pairs = place[first : first + 2 * n_pairs].reshape(n_pairs, 2)
    winners: BoolArray = np.ones(len(order), dtype=np.bool_)
    winners[pairs.max(axis=1)] = False
    return winners
