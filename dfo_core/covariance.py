"""Covariance models: sample from N(0, C), undo that, and learn C.

What an evolution strategy needs of its covariance matrix is small: y = A z with A A^T = C, the
inverse of that map, and the diagonal; CMA-ES adds updates C <- decay C + sum_i c_i y_i y_i^T.

scipy.linalg is imported inside the methods that call it: it is slow to import, and many runs never
need it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from dfo_core.validation import FloatArray


class CovarianceModel(Protocol):
    """What is asked of a covariance matrix C, with A A^T = C (perhaps of a few updates ago)."""

    def color(self, z: FloatArray) -> FloatArray:
        """Return A z for each row of z, (k, n)."""

    def whiten(self, y: FloatArray) -> FloatArray:
        """Return A^-1 y for each row of y, (k, n)."""

    @property
    def variances(self) -> FloatArray:
        """The diagonal of C, (n,), up to date."""

    @property
    def condition(self) -> float:
        """A lower bound of C's condition number; inf if C could not be factorized."""

    def axis(self, i: int) -> FloatArray:
        """Return column i of A, (n,)."""

    def matrix(self) -> FloatArray:
        """Return C, (n, n), up to date; a copy."""

    def get_state(self) -> dict[str, Any]:
        """Return the state as a dictionary of numbers and arrays; a copy."""

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `get_state`."""


class LearnedCovariance(CovarianceModel, Protocol):
    """A covariance matrix that CMA-ES can update."""

    def update(self, decay: float, rows: FloatArray, coefficients: FloatArray) -> None:
        """Set C <- decay C + sum_i coefficients[i] rows[i] rows[i]^T; rows is (k, n)."""


class FullCovariance:
    """A full matrix, sampled through its Cholesky factor.

    Three things make this fast at n in the hundreds. Any A with A A^T = C gives the same
    distribution, and a Cholesky factor costs a tenth of an eigendecomposition. It is recomputed
    every `lag` generations only (Hansen 2016, Section B.2). And as C itself is needed at those
    moments only, the updates of the generations between are collected and applied as one symmetric
    matrix product.

    The step-size path then adds up A^-1 y where the tutorial has C^-1/2 y. The two differ by a
    rotation, which leaves the norm, all that is used of the path, as it is, and which changes
    little from one factor to the next. Krause, Arbones & Igel (2016, CMA-ES with Optimal
    Covariance Update and Storage Complexity, NIPS) use the same path.

    Args:
        dim: Number of coordinates n.
        lag: Generations between two factorizations.
        n_rows: Rows an update has at most.
    """

    def __init__(self, dim: int, lag: int, n_rows: int) -> None:
        # Column-major, lower triangle only: the upper ones of both hold no information.
        self._C: FloatArray = np.asfortranarray(np.eye(dim))
        self._A: FloatArray = self._C.copy(order="F")
        self._variances: FloatArray = np.ones(dim)
        self._condition = 1.0
        # Updates not yet in C: C_now = decay C + sum_i coefficients[i] rows[i] rows[i]^T.
        self._lag = lag
        self._rows: FloatArray = np.zeros((lag * n_rows, dim))
        self._coefficients: FloatArray = np.zeros(lag * n_rows)
        self._n_rows = 0
        self._decay = 1.0
        self._age = 0

    def color(self, z: FloatArray) -> FloatArray:
        """Return A z for each row of z, (k, n)."""
        from scipy.linalg.blas import dtrmm

        # The transposed view is column-major, as BLAS wants it; trmm skips the zero triangle.
        y: FloatArray = dtrmm(1.0, self._A, z.T, lower=1).T
        return y

    def whiten(self, y: FloatArray) -> FloatArray:
        """Return A^-1 y for each row of y, (k, n)."""
        from scipy.linalg.blas import dtrsm

        z: FloatArray = dtrsm(1.0, self._A, y.T, lower=1).T
        return z

    def update(self, decay: float, rows: FloatArray, coefficients: FloatArray) -> None:
        """Set C <- decay C + sum_i coefficients[i] rows[i] rows[i]^T; rows is (k, n)."""
        self._variances = decay * self._variances + coefficients @ (rows * rows)
        new = slice(self._n_rows, self._n_rows + len(rows))
        self._coefficients[: self._n_rows] *= decay
        self._coefficients[new] = coefficients
        self._rows[new] = rows
        self._decay *= decay
        self._n_rows += len(rows)
        self._age += 1
        if self._age >= self._lag:
            self._apply(self._C)
            self._n_rows, self._decay, self._age = 0, 1.0, 0
            self._factorize()

    def _apply(self, C: FloatArray) -> None:
        """Add the collected updates to the lower triangle of `C`, in place."""
        from scipy.linalg.blas import dsyrk

        c, rows = self._coefficients[: self._n_rows], self._rows[: self._n_rows]
        beta = self._decay
        for sign in (1.0, -1.0):
            chosen = np.flatnonzero(sign * c > 0)
            if chosen.size:
                scaled = np.sqrt(np.abs(c[chosen]))[:, np.newaxis] * rows[chosen]
                dsyrk(sign, scaled.T, beta, C, lower=1, overwrite_c=1)
                beta = 1.0

    def _factorize(self) -> None:
        from scipy.linalg.lapack import dpotrf

        np.copyto(self._A, self._C)
        _, info = dpotrf(self._A, lower=1, clean=0, overwrite_a=1)
        failed = info != 0
        # C is positive definite by the limits on the negative weights: Eq. 52 sees to one
        # generation, and over `lag` of them n c_mu sum |w-|, what they take from any direction,
        # adds up to a few tenths at most. Except for rounding, once the condition number nears
        # 1e16: then the shortest axes are lost, and lifting them is the best that can be done.
        lift = self.dim * np.finfo(float).eps * float(self._variances.max())
        while info != 0 and np.isfinite(lift):
            self._C[np.diag_indices(self.dim)] += lift
            np.copyto(self._A, self._C)
            _, info = dpotrf(self._A, lower=1, clean=0, overwrite_a=1)
            lift *= 10
        # The same numbers up to rounding; an error must not build up over the generations.
        self._variances = self._C.diagonal().copy()
        pivots = self._A.diagonal()
        # A Cholesky factor's pivots lie within the range of C's eigenvalues' roots.
        self._condition = np.inf if failed else float((pivots.max() / pivots.min()) ** 2)

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return len(self._variances)

    @property
    def variances(self) -> FloatArray:
        """The diagonal of C, (n,), up to date."""
        return self._variances

    @property
    def condition(self) -> float:
        """A lower bound of C's condition number; inf if C could not be factorized."""
        return self._condition

    def axis(self, i: int) -> FloatArray:
        """Return column i of A, (n,)."""
        column: FloatArray = self._A[:, i].copy()
        column[:i] = 0.0
        return column

    def matrix(self) -> FloatArray:
        """Return C, (n, n), up to date; a copy."""
        C = self._C.copy(order="F")
        self._apply(C)
        matrix: FloatArray = np.tril(C) + np.tril(C, -1).T
        return matrix

    def get_state(self) -> dict[str, Any]:
        """Return the state as a dictionary of numbers and arrays; a copy.

        A is not in it: C changes only when it is factorized, so A is its factor.
        """
        return {
            "lower_triangle": self._C[np.tril_indices(self.dim)],
            "variances": self._variances.copy(),
            "condition": self._condition,
            "rows": self._rows[: self._n_rows].copy(),
            "coefficients": self._coefficients[: self._n_rows].copy(),
            "decay": self._decay,
            "age": self._age,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `get_state`."""
        self._C[np.tril_indices(self.dim)] = state["lower_triangle"]
        self._factorize()
        self._variances, self._condition = state["variances"].copy(), state["condition"]
        self._n_rows = len(state["rows"])
        self._rows[: self._n_rows] = state["rows"]
        self._coefficients[: self._n_rows] = state["coefficients"]
        self._decay, self._age = state["decay"], state["age"]


class DiagonalCovariance:
    """A diagonal matrix: sampling and learning are linear in n (Ros & Hansen 2008).

    Args:
        dim: Number of coordinates n.
    """

    def __init__(self, dim: int) -> None:
        self._variances: FloatArray = np.ones(dim)

    def color(self, z: FloatArray) -> FloatArray:
        """Return A z for each row of z, (k, n)."""
        y: FloatArray = np.sqrt(self._variances) * z
        return y

    def whiten(self, y: FloatArray) -> FloatArray:
        """Return A^-1 y for each row of y, (k, n)."""
        z: FloatArray = y / np.sqrt(self._variances)
        return z

    def update(self, decay: float, rows: FloatArray, coefficients: FloatArray) -> None:
        """Set C <- decay C + diagonal of sum_i coefficients[i] rows[i] rows[i]^T."""
        self._variances = decay * self._variances + coefficients @ (rows * rows)
        # Positive by the weights' limits but for rounding; the floor keeps the square root real.
        np.maximum(self._variances, np.finfo(float).tiny, out=self._variances)

    @property
    def variances(self) -> FloatArray:
        """The diagonal of C, (n,)."""
        return self._variances

    @property
    def condition(self) -> float:
        """C's condition number."""
        return float(self._variances.max() / self._variances.min())

    def axis(self, i: int) -> FloatArray:
        """Return column i of A, (n,)."""
        column = np.zeros_like(self._variances)
        column[i] = np.sqrt(self._variances[i])
        return column

    def matrix(self) -> FloatArray:
        """Return C, (n, n); a copy."""
        matrix: FloatArray = np.diag(self._variances)
        return matrix

    def get_state(self) -> dict[str, Any]:
        """Return the state as a dictionary of arrays; a copy."""
        return {"variances": self._variances.copy()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `get_state`."""
        self._variances = state["variances"].copy()
