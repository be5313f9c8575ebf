"""Tune the hyperparameters of a scikit-learn model by cross-validation, in parallel.

    pip install scikit-learn
    python examples/sklearn_hyperparameters.py     # about 20 seconds on 2 cores

A support vector machine has two hyperparameters that matter, C and gamma, and both live on a log
scale: so the search runs over their logarithms. Any executor of `concurrent.futures` evaluates a
generation in parallel.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from dfo_core import minimize

LOG10_BOUNDS = [-3, -5], [4, 1]  # of C and gamma


def model(log10_C=0.0, log10_gamma=None):
    gamma = "scale" if log10_gamma is None else 10**log10_gamma
    return make_pipeline(StandardScaler(), SVC(C=10**log10_C, gamma=gamma))


def error(x=()):
    """Log loss would be smoother, but this is what we are after: the share of wrong answers."""
    features, labels = load_breast_cancer(return_X_y=True)
    return 1 - cross_val_score(model(*x), features, labels, cv=10).mean()


def main(budget: int = 120, workers: int = 2) -> tuple[float, float]:
    with ProcessPoolExecutor(workers) as executor:
        best = minimize(
            error, bounds=LOG10_BOUNDS, popsize=12, budget=budget, seed=0, executor=executor
        )
    default = error()
    print(f"default: {100 * default:.2f} % wrong in 10-fold cross-validation")
    print(
        f"tuned:   {100 * best.fun:.2f} %, C = {10 ** best.x[0]:.3g}, gamma = {10 ** best.x[1]:.3g}"
    )
    return default, best.fun


if __name__ == "__main__":
    main()
