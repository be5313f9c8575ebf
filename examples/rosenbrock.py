"""Minimise the Rosenbrock function with three methods and plot how they converge.

    python examples/rosenbrock.py            # about 2 seconds; writes rosenbrock.png

The function's valley is narrow and bent. CMA-ES learns its shape. With a diagonal covariance matrix
it cannot, as the valley does not lie along the axes, and random search never finds the valley.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dfo_core import minimize

DIM = 10
METHODS = ("cma-es", "sep-cma-es", "random")


def rosenbrock(x):
    return ((1 - x[:-1]) ** 2 + 100 * (x[1:] - x[:-1] ** 2) ** 2).sum()


def main(budget: int = 8_000, plot: str | Path = "rosenbrock.png") -> dict[str, float]:
    curves = {}
    for method in METHODS:
        progress = []
        best = minimize(
            rosenbrock,
            **({} if method == "random" else {"x0": np.zeros(DIM), "sigma0": 0.5}),
            dim=DIM,
            bounds=(-5, 5),
            method=method,
            budget=budget,
            target=1e-10,
            seed=0,
            callback=progress.append,
        )
        print(f"{method:>10}: {best.fun:9.2e} after {best.nfev} evaluations, {best.message}")
        curves[method] = [(result.nfev, result.fun) for result in progress]

    import matplotlib.pyplot as plt

    for method, curve in curves.items():
        plt.semilogy(*zip(*curve, strict=True), label=method)
    plt.xlabel("evaluations")
    plt.ylabel("best loss so far")
    plt.title(f"Rosenbrock, {DIM} dimensions")
    plt.legend()
    plt.grid(alpha=0.3)
    plt.savefig(plot, dpi=120)
    print(f"wrote {plot}")
    return {method: curve[-1][1] for method, curve in curves.items()}


if __name__ == "__main__":
    main()
