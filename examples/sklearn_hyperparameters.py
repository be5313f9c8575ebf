"""Tune the hyperparameters of a scikit-learn model by cross-validation, in parallel.

    pip install scikit-learn
    python examples/sklearn_hyperparameters.py     # about 20 seconds on 2 cores

A support vector machine has two hyperparameters that matter, C and gamma, and both live on a log
scale: so the search runs over their logarithms. Any executor of `concurrent.futures` evaluates a
generation in parallel. What was selected by cross-validation looks better there than it is, so both
models answer a test set that neither has seen.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from dfo_core import minimize

LOG10_BOUNDS = [-3, -5], [4, 1]  # of C and gamma


def model(log10_C=0.0, log10_gamma=None):
    gamma = "scale" if log10_gamma is None else 10**log10_gamma
    return make_pipeline(StandardScaler(), SVC(C=10**log10_C, gamma=gamma))


def split():
    features, labels = load_breast_cancer(return_X_y=True)
    return train_test_split(features, labels, test_size=0.3, stratify=labels, random_state=0)


def error(x=()):
    """Log loss would be smoother, but this is what we are after: the share of wrong answers."""
    features, _, labels, _ = split()
    return 1 - cross_val_score(model(*x), features, labels, cv=10).mean()


def error_of_test_set(x=()):
    """The same of a model fitted to the training set, on the test set."""
    features, test_features, labels, test_labels = split()
    return 1 - model(*x).fit(features, labels).score(test_features, test_labels)


def main(budget: int = 120, workers: int = 2) -> tuple[float, float]:
    with ProcessPoolExecutor(workers) as executor:
        best = minimize(
            error, bounds=LOG10_BOUNDS, popsize=12, budget=budget, seed=0, executor=executor
        )
    default = error()
    print(f"tuned: C = {10 ** best.x[0]:.3g}, gamma = {10 ** best.x[1]:.3g}")
    print("wrong answers, %   10-fold cross-validation   test set")
    for name, validated, x in (("default", default, ()), ("tuned", best.fun, best.x)):
        print(f"{name:<16}{100 * validated:>15.2f}{100 * error_of_test_set(x):>23.2f}")
    return default, best.fun


if __name__ == "__main__":
    main()
