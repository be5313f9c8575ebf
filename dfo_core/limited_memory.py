"""A covariance matrix of a few directions, for thousands of coordinates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dfo_core.validation import FloatArray


class LimitedMemoryCovariance:
    """C = A A^T with A = T_k ... T_1 and T_i = (1 - c_i) I + c_i m_i m_i^T; k grows up to m.

    The product is never formed, nor applied factor by factor. Gathering the m_i as rows of M,

        A = s (I + M^T W M),  s = prod_i (1 - c_i),  W^-1 = diag((1 - c_i) / c_i) - tril(G, -1)

    with the Gram matrix G = M M^T and tril(., -1) its part below the diagonal. (T_i / (1 - c_i) is
    I + b_i m_i m_i^T with b_i = c_i / (1 - c_i); multiplying it on from the left adds the row
    b_i (m_i + sum_{j<i} G_ij v_j) to V = W M. It is the compact form of a product of Householder
    matrices, Schreiber & Van Loan 1989.) A sample then costs O(m n) as two thin matrix products,
    and what else is asked of a covariance matrix is exact at O(m^2 n):

        A^-1 = (I - M^T (diag((1 - c_i) / c_i) + triu(G))^-1 M) / s     (Woodbury)

    Args:
        rates: (m,) the c_i, in (0, 1).
        dim: Number of coordinates n.
    """

    def __init__(self, rates: FloatArray, dim: int) -> None:
        self._rates = rates
        self._M: FloatArray = np.zeros((len(rates), dim))
        self._used = 0
        self._factorize()

    def update(self, decay: FloatArray, gain: FloatArray, step: FloatArray) -> None:
        """Set m_i <- decay[i] m_i + gain[i] step and take one more m_i into use; step is (n,)."""
        self._M = decay[:, np.newaxis] * self._M + gain[:, np.newaxis] * step
        self._used = min(self._used + 1, len(self._M))
        self._factorize()

    def _factorize(self) -> None:
        c, M = self._rates[: self._used], self._M[: self._used]
        self._scale = float(np.prod(1 - c))
        self._gram: FloatArray = M @ M.T
        self._diagonal = np.diag((1 - c) / c)
        inverse = self._diagonal - np.tril(self._gram, -1)
        self._W: FloatArray = np.linalg.inv(inverse).astype(np.float64, copy=False)

    def color(self, z: FloatArray) -> FloatArray:
        """Return A z for each row of z, (k, n)."""
        M = self._M[: self._used]
        y: FloatArray = self._scale * (z + ((z @ M.T) @ self._W.T) @ M)
        return y

    def whiten(self, y: FloatArray) -> FloatArray:
        """Return A^-1 y for each row of y, (k, n)."""
        M = self._M[: self._used]
        inner = np.linalg.solve(self._diagonal + np.triu(self._gram), M @ y.T)
        z: FloatArray = (y - inner.T @ M) / self._scale
        return z

    @property
    def _middle(self) -> FloatArray:
        """The (k, k) matrix K of C = s^2 (I + M^T K M)."""
        W = self._W
        middle: FloatArray = W + W.T + W @ self._gram @ W.T
        return middle

    @property
    def variances(self) -> FloatArray:
        """The diagonal of C, (n,)."""
        M = self._M[: self._used]
        variances: FloatArray = self._scale**2 * (1 + ((self._middle @ M) * M).sum(axis=0))
        return variances

    @property
    def condition(self) -> float:
        """C's condition number."""
        if not self._used:
            return 1.0
        # With G = R R^T the rows of M are R times orthonormal ones, in which C's eigenvalues, but
        # for the s^2 in all other directions, are those of s^2 (I + R^T K R).
        values, vectors = np.linalg.eigh(self._gram)
        R = vectors * np.sqrt(np.maximum(values, 0.0))
        inside = 1 + np.linalg.eigvalsh(R.T @ self._middle @ R)
        return float(max(1.0, inside[-1]) / min(1.0, inside[0]))

    def axis(self, i: int) -> FloatArray:
        """Return column i of A, (n,)."""
        unit = np.zeros((1, self._M.shape[1]))
        unit[0, i] = 1.0
        column: FloatArray = self.color(unit)[0]
        return column

    def matrix(self) -> FloatArray:
        """Return C, (n, n); a copy."""
        A = self.color(np.eye(self._M.shape[1])).T
        matrix: FloatArray = A @ A.T
        return matrix

    def get_state(self) -> dict[str, Any]:
        """Return the state as a dictionary of numbers and arrays; a copy."""
        return {"paths": self._M.copy(), "used": self._used}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from `get_state`."""
        self._M, self._used = state["paths"].copy(), state["used"]
        self._factorize()
