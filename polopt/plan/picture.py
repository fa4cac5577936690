"""A plan as a picture: what fills a device's memory while each program runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from polopt.errors import missing_extra
from polopt.plan.planner import Plan
from polopt.plan.report import GIB, parts_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette, as in polopt.train.plots.
_HUES = {
    "parameters": "#0072B2",
    "optimiser": "#56B4E9",
    "frozen models": "#009E73",
    "batch and cache": "#E69F00",
    "activations": "#F0E442",
    "temporary": "#D55E00",
    "code": "#CC79A7",
}


def draw(plan: Plan, out: Path) -> Path:
    """Draw a bar for each program, and the memory of a device as a line; return `out`."""
    figure = figure_of(plan)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    return out


def figure_of(plan: Plan) -> Figure:
    """The picture, not yet written.

    Raises:
      PoloptError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing_extra("matplotlib", "a picture of a plan") from error
    found = parts_of(plan)
    figure = Figure(figsize=(9, 1.4 + 0.6 * max(len(found), 2)), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names = list(reversed(found))
    left = [0.0] * len(names)
    for part, hue in _HUES.items():
        sizes = [max(found[name].get(part, 0), 0) / GIB for name in names]
        if any(sizes):
            axes.barh(names, sizes, left=left, color=hue, label=part)
            left = [a + b for a, b in zip(left, sizes, strict=True)]
    for name, total in zip(names, left, strict=True):
        axes.annotate(
            f"{total:.2f}", (total, name), (4, 0), textcoords="offset points", va="center"
        )
    axes.axvline(plan.where.memory / GIB, color="black", linestyle="--", label="memory")
    axes.set_xlabel("GiB on a device")
    verdict = "fits" if plan.fits else "does not fit"
    axes.set_title(f"{plan.config.model}, {plan.config.algorithm}, {plan.where.name}: {verdict}")
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    return figure
