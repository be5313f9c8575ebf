"""Design a welded beam at the least cost within its limits, with constraints as a penalty.

    python examples/engineering_design.py    # about 2 seconds

A classic of constrained design (Ragsdell & Phillips 1976): weld height and length, beam depth and
width, against shear stress, bending stress, buckling and deflection. The best design published for
this formulation costs 1.724852 (Cagnina, Esquivel & Coello Coello 2008, Informatica 32, 319-326,
and many since).
"""

from __future__ import annotations

import numpy as np

from dfo_core import minimize

PUBLISHED = 1.724852
LOWER = np.array([0.1, 0.1, 0.1, 0.1])  # inches
UPPER = np.array([2.0, 10.0, 10.0, 2.0])
LOAD, OVERHANG = 6_000, 14  # pounds, inches from the weld
YOUNG, SHEAR = 30e6, 12e6  # moduli, psi
MAX_SHEAR, MAX_BENDING, MAX_DEFLECTION = 13_600, 30_000, 0.25


def cost(design):
    height, length, depth, width = design
    return 1.10471 * height**2 * length + 0.04811 * depth * width * (OVERHANG + length)


def violations(design):
    """By how much of its limit each constraint is missed, (6,); at most zero where it is met."""
    height, length, depth, width = design
    primary = LOAD / (np.sqrt(2) * height * length)
    moment = LOAD * (OVERHANG + length / 2)
    radius = np.hypot(length / 2, (height + depth) / 2)
    inertia = 2 * np.sqrt(2) * height * length * (length**2 / 12 + ((height + depth) / 2) ** 2)
    secondary = moment * radius / inertia
    shear = np.sqrt(primary**2 + primary * secondary * length / radius + secondary**2)
    bending = 6 * LOAD * OVERHANG / (width * depth**2)
    deflection = 4 * LOAD * OVERHANG**3 / (YOUNG * depth**3 * width)
    slenderness = 1 - depth / (2 * OVERHANG) * np.sqrt(YOUNG / (4 * SHEAR))
    buckling = 4.013 * YOUNG * depth * width**3 / (6 * OVERHANG**2) * slenderness
    return np.array(
        [
            shear / MAX_SHEAR - 1,
            bending / MAX_BENDING - 1,
            deflection / MAX_DEFLECTION - 1,
            1 - buckling / LOAD,
            height / width - 1,
            cost(design) / 5 - 1,
        ]
    )


def main(budget: int = 10_000) -> float:
    def loss(u):
        design = LOWER + u * (UPPER - LOWER)
        # Linear in the violations and steeper than the cost, so that the best point is feasible.
        return cost(design) + 100 * np.maximum(violations(design), 0).sum()

    # In the unit cube, as one step size has to fit all four lengths.
    best = minimize(loss, bounds=([0] * 4, [1] * 4), budget=budget, seed=0)
    design = LOWER + best.x * (UPPER - LOWER)
    for name, value in zip(("weld height", "weld length", "depth", "width"), design, strict=True):
        print(f"{name:>12}: {value:.6f} in")
    print(f"{'cost':>12}: {cost(design):.6f} (published: {PUBLISHED})")
    print(f"{'worst limit':>12}: missed by {max(0, violations(design).max()):.1e} of it")
    return cost(design)


if __name__ == "__main__":
    main()
