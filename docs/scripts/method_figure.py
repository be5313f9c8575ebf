"""Draws docs/images/method.svg: python docs/scripts/method_figure.py."""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

TARGET = Path(__file__).parents[1] / "images" / "method.svg"
FROZEN, SEARCHED, FIXED = "#dfe3ee", "#ffd9a0", "#e9f3e2"
INK = "#222222"


def box(axes: Axes, x: float, y: float, w: float, h: float, text: str, colour: str) -> None:
    """A rounded box whose centre is (x, y)."""
    shape = FancyBboxPatch(
        (x - w / 2, y - h / 2), w, h, boxstyle="round,pad=0,rounding_size=0.12", fc=colour, ec=INK
    )
    axes.add_patch(shape)
    axes.text(x, y, text, ha="center", va="center", fontsize=10, color=INK)


def arrow(
    axes: Axes, start: tuple[float, float], end: tuple[float, float], bend: float = 0
) -> None:
    """An arrow, bent by so much of its length."""
    axes.add_patch(
        FancyArrowPatch(
            start,
            end,
            connectionstyle=f"arc3,rad={bend}",
            arrowstyle="-|>",
            mutation_scale=12,
            color=INK,
            shrinkA=1,
            shrinkB=1,
        )
    )


def draw() -> Figure:
    """The layers of a model on the left, one layer's search on the right."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 18), ylim=(0, 8.4), aspect="equal")
    axes.axis("off")

    for y, name in (
        (1.2, "layer 1"),
        (2.6, "layer 2"),
        (4.0, "…"),
        (5.4, "layer $l$"),
        (6.8, "head"),
    ):
        colour = SEARCHED if name == "layer $l$" else FROZEN
        box(axes, 1.8, y, 2.6, 0.9, name, colour)
    for y in (1.65, 3.05, 4.45, 5.85):
        arrow(axes, (1.8, y), (1.8, y + 0.5))
    arrow(axes, (1.8, 0.2), (1.8, 0.75))
    axes.text(2.1, 0.25, "prompts", fontsize=9, color=INK)
    arrow(axes, (1.8, 7.25), (1.8, 7.8))
    axes.text(2.1, 7.6, "label words' logits → loss", fontsize=9, color=INK)

    axes.plot([3.2, 4.6], [5.8, 7.2], color=INK, lw=0.6, ls=":")
    axes.plot([3.2, 4.6], [5.0, 0.9], color=INK, lw=0.6, ls=":")
    axes.add_patch(FancyBboxPatch((4.6, 0.6), 13, 6.8, boxstyle="round,pad=0", fc="none", ec=INK))

    box(axes, 6.5, 5.9, 2.6, 1.1, "optimizer of\nlayer $l$", SEARCHED)
    box(axes, 6.5, 3.2, 2.6, 1.1, "$z$, $d$ = 500\nin four parts", SEARCHED)
    arrow(axes, (6.5, 5.3), (6.5, 3.8))
    axes.text(6.65, 4.5, "ask", fontsize=9, color=INK)
    for y, matrix in ((4.1, "A"), (2.3, "B")):
        box(axes, 10.1, y, 2.9, 1.1, f"fixed random\nprojection $P_{matrix}$", FIXED)
        box(axes, 13.3, y, 1.7, 1.1, f"${matrix}$", SEARCHED)
        arrow(axes, (7.85, 3.2), (8.6, y))
        arrow(axes, (11.6, y), (12.4, y))
        arrow(axes, (14.2, y), (15.0, 3.25))
    box(axes, 16.1, 3.2, 2.1, 1.1, "$Wx + BAx$", FROZEN)
    axes.text(10.1, 1.15, "once for each target: query, value", fontsize=9, color=INK, ha="center")
    arrow(axes, (16.1, 3.8), (7.85, 6.0), bend=0.25)
    axes.text(
        12.6,
        6.55,
        "forward passes: the candidate's loss — tell",
        fontsize=9,
        color=INK,
        ha="center",
    )
    return figure


if __name__ == "__main__":
    with rc_context({"svg.hashsalt": "method"}):  # the same picture gives the same file
        draw().savefig(TARGET, metadata={"Date": None})
