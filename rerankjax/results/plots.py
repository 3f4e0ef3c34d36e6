"""The report's figures as inline SVG. Their colours are the page's CSS variables, and so follow light and dark mode.

Each series has the same colour, and the same dash or marker, in every figure; colours are from Okabe and Ito's set.
"""

import io
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from rerankjax.results.calibration import Bin
from rerankjax.results.divergence import best_of_n_divergence
from rerankjax.results.evaluation import Evaluation
from rerankjax.results.markup import visible
from rerankjax.results.render import reranked
from rerankjax.results.results import Results
from rerankjax.results.selection import RULE_HEADS, sample_counts
from rerankjax.results.statistics import Estimate, decimal

# Matplotlib needs colours, the page needs variables: each variable is drawn in a colour that nothing else uses.
_VARIABLES = ("ink", "muted", "grid", "grey", "gold", "pink", "blue", "orange", "green")
_COLOURS = {name: f"#00000{i + 1}" for i, name in enumerate(_VARIABLES)}

_RULE_STYLES: dict[str, tuple[str, Any, str]] = {
    "greedy": ("ink", (0, (6, 2)), ""),
    "random": ("grey", ":", "o"),
    "log_probability": ("gold", "-", "s"),
    "majority": ("pink", "-", "^"),
    "reranker": ("blue", "-", "o"),
    "reranker+log_probability": ("orange", "-", "D"),
    "oracle": ("green", "--", "v"),
}
_LINE_COLOURS = ("blue", "orange", "green", "pink", "gold", "grey")
_MAX_POINTS = 300

# The stubs type the keys as a union of all names.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # labels come from configs
    "svg.hashsalt": "rerankjax",
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _COLOURS["grid"],
    "axes.labelcolor": _COLOURS["muted"],
    "axes.titlecolor": _COLOURS["ink"],
    "text.color": _COLOURS["ink"],
    "xtick.color": _COLOURS["muted"],
    "ytick.color": _COLOURS["muted"],
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _COLOURS["grid"],
    "grid.linewidth": 0.6,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}


@dataclass(frozen=True)
class Curve:
    """What was logged while one seed's `name` (a policy, a reranker) was trained.

    Each row has "step" and any of the figure's keys; a key may be missing, or None, in some rows.
    """

    name: str
    seed: int
    rows: Sequence[Mapping[str, float | None]]


def solved_fraction(results: Results) -> str:
    """Solved fraction against the number of samples chosen from, one panel for each system, one line for each rule."""
    with matplotlib.rc_context(_STYLE):
        figure, panels = _panels(len(results.systems), height=2.3, sharey=True)
        counts = sample_counts(results.samples)
        handles = {}
        for system, axes in zip(results.systems, panels, strict=True):
            for rule in RULE_HEADS:
                if not results.find(system.system, rule):
                    continue
                colour, dash, marker = _RULE_STYLES[rule]
                rows = [results.figure(system.system, rule, n) for n in counts]
                axes.fill_between(
                    counts, [r.low for r in rows], [r.high for r in rows], color=_COLOURS[colour], alpha=0.12, lw=0
                )
                (handles[rule],) = axes.plot(
                    counts,
                    [r.value for r in rows],
                    color=_COLOURS[colour],
                    linestyle=dash,
                    marker=marker,
                    markersize=3,
                    linewidth=2 if rule == "reranker" else 1.3,
                )
            axes.set_xscale("log", base=2)
            axes.set_xticks(counts, [str(n) for n in counts])
            axes.minorticks_off()
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: decimal(y)[:-1]))
            axes.set_title(_two_lines(system.label))
        rules = [rule for rule in RULE_HEADS if rule in handles]
        labels = [RULE_HEADS[rule] for rule in rules]
        figure.legend([handles[rule] for rule in rules], labels, loc="outside upper left", ncols=len(rules))
        figure.supxlabel("samples to choose from", fontsize=8, color=_COLOURS["muted"])
        return _svg(figure, "Solved fraction against samples, for each rule and system")


def solved_by_divergence(results: Results) -> str:
    """Solved fraction against sqrt(KL to the SFT model): its best-of-n curve, and two marks for each other system.

    The first system with a reranker and a KL has the SFT model's samples.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(10, 3.6), layout="constrained")
        axes = figure.subplots()
        known = [s for s in reranked(results) if results.divergence(s.system, "random")]
        trained = [s for s in known if s.policy != known[0].policy]
        for start in known[:1]:
            counts = sample_counts(results.samples)
            rows = [results.figure(start.system, "reranker", n) for n in counts]
            x = [best_of_n_divergence(n) ** 0.5 for n in counts]
            axes.fill_between(x, [r.low for r in rows], [r.high for r in rows], color=_COLOURS["ink"], alpha=0.08, lw=0)
            axes.plot(x, [r.value for r in rows], color=_COLOURS["ink"], marker=".", label=visible(start.label))
            for n, position, row in zip(counts, x, rows, strict=True):
                axes.annotate(str(n), (position, row.value), textcoords="offset points", xytext=(0, 5), fontsize=7)
        for i, system in enumerate(trained):
            colour = _COLOURS[_LINE_COLOURS[i % len(_LINE_COLOURS)]]
            x = [_kl(results, system.system, rule) ** 0.5 for rule in ("random", "reranker")]
            y = [results.figure(system.system, rule).value for rule in ("random", "reranker")]
            dash = "-" if i < len(_LINE_COLOURS) else ":"
            axes.plot(x, y, color=colour, linewidth=0.8, linestyle=dash)
            axes.scatter(x[:1], y[:1], color=colour, marker="o", s=18)
            axes.scatter(x[1:], y[1:], color=colour, marker="s", s=18, label=visible(system.label))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: decimal(y)[:-1]))
        axes.set_xlabel("sqrt(KL to the SFT model, nats)")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
        return _svg(figure, "Solved fraction against the square root of the KL to the SFT model")


def _kl(results: Results, system: str, rule: str) -> float:
    """The estimated KL, or 0 if it is unknown or below 0: a KL cannot be negative, but its estimate can."""
    divergence = results.divergence(system, rule)
    return max(0.0, divergence.value) if divergence else 0.0


def score_distributions(evaluations: Sequence[Evaluation], results: Results) -> str:
    """Histograms of correct and of incorrect samples' scores, standardised within each seed; one panel per reranker.

    evaluations: those that `results` summarises, and possibly others.
    """
    systems = reranked(results)
    with matplotlib.rc_context(_STYLE):
        figure, panels = _panels(len(systems), height=1.6)
        bins = np.linspace(-3.5, 3.5, 36)
        for system, axes in zip(systems, panels, strict=True):
            place = results.evaluation_set, system.system
            of_system = [e for e in evaluations if (e.evaluation_set, e.system) == place]
            # Rerankers of different seeds have scales of their own.
            scores = np.concatenate([_standardised(e.reranker_scores) for e in of_system])
            passed = np.concatenate([e.passed.ravel() for e in of_system])
            for kind, colour in ((~passed, "orange"), (passed, "blue")):
                axes.hist(
                    np.clip(scores[kind], bins[0], bins[-1]),
                    bins=list(bins),
                    weights=np.full(kind.sum(), 1 / len(scores)),
                    histtype="stepfilled",
                    facecolor=(*matplotlib.colors.to_rgb(_COLOURS[colour]), 0.35),
                    edgecolor=_COLOURS[colour],
                    label="correct" if colour == "blue" else "incorrect",
                )
            auc = results.discrimination(system.system, "auc")
            axes.set_title(_two_lines(system.label))
            note = f"AUC {decimal(auc.value)}" if auc else "AUC undefined"
            axes.text(0.99, 0.97, note, transform=axes.transAxes, ha="right", va="top", color=_COLOURS["muted"])
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles[::-1], labels[::-1], loc="outside upper left", ncols=2)
        figure.supxlabel("reranker score, standardised within each seed", fontsize=8, color=_COLOURS["muted"])
        return _svg(figure, "Reranker scores of correct and incorrect samples, for each system")


def reliability(results: Results) -> str:
    """Pass rate against predicted probability; a point's area is its bin's fraction of samples."""
    reliabilities = {
        s.label: (
            [b for b in results.reliabilities if b.system == s.system],
            results.discrimination(s.system, "expected_calibration_error"),
        )
        for s in reranked(results)
    }
    return reliability_of(reliabilities, "Reliability: pass rate against predicted probability, for each system")


def reliability_of(reliabilities: Mapping[str, tuple[Sequence[Bin], Estimate | None]], title: str) -> str:
    """`reliability` for each label's bins and calibration error."""
    with matplotlib.rc_context(_STYLE):
        figure, panels = _panels(len(reliabilities), height=2.4, sharey=True)
        for (label, (bins, error)), axes in zip(reliabilities.items(), panels, strict=True):
            predicted, rate = [b.predicted for b in bins], [b.value for b in bins]
            # A bootstrap interval may exclude its own estimate by a rounding error.
            below = [max(0.0, b.value - b.low) for b in bins]
            above = [max(0.0, b.high - b.value) for b in bins]
            axes.plot([0, 1], [0, 1], color=_COLOURS["grey"], linestyle=":", linewidth=1.3)
            axes.errorbar(predicted, rate, (below, above), fmt="none", ecolor=_COLOURS["blue"], elinewidth=1, alpha=0.6)
            axes.plot(predicted, rate, color=_COLOURS["blue"], linewidth=1, alpha=0.5)
            areas = [8 + 250 * b.share for b in bins]
            axes.scatter(predicted, rate, s=areas, color=_COLOURS["blue"], zorder=3, linewidths=0)
            axes.set_title(_two_lines(label))
            note = f"error {decimal(error.value)}" if error else ""
            axes.text(0.02, 0.97, note, transform=axes.transAxes, va="top", color=_COLOURS["muted"])
            axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
            ticks = [i / 5 for i in range(6)], ["0", ".2", ".4", ".6", ".8", "1"]
            axes.set_xticks(*ticks)
            axes.set_yticks(*ticks)
        figure.supxlabel("predicted probability of passing", fontsize=8, color=_COLOURS["muted"])
        figure.supylabel("pass rate", fontsize=8, color=_COLOURS["muted"])
        return _svg(figure, title)


def best_of_n(curves: Mapping[str, Mapping[int, Estimate]], title: str) -> str:
    """Solved fraction against the number of samples chosen from, all curves in one panel with their intervals."""
    with matplotlib.rc_context(_STYLE):
        figure, (axes, *_) = _panels(1, height=2.8, columns=1)
        for i, (label, points) in enumerate(curves.items()):
            colour = _COLOURS[_LINE_COLOURS[i % len(_LINE_COLOURS)]]
            counts, estimates = list(points), list(points.values())
            axes.fill_between(
                counts, [e.low for e in estimates], [e.high for e in estimates], color=colour, alpha=0.12, lw=0
            )
            dash = "-" if i < len(_LINE_COLOURS) else "--"
            axes.plot(
                counts, [e.value for e in estimates], dash, color=colour, marker="o", markersize=3, label=visible(label)
            )
        axes.set_xscale("log", base=2)
        counts = sorted({n for points in curves.values() for n in points})
        axes.set_xticks(counts, [str(n) for n in counts])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: decimal(y)[:-1]))
        axes.set_xlabel("samples chosen from")
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper")
        return _svg(figure, title)


def ppo_curves(curves: Sequence[Curve]) -> str:
    """Score, KL, dev rates and length against the PPO step: thin lines are seeds, thick ones their mean."""
    keys = {
        "score": "reranker score",
        "kl": "KL to the SFT model (nats)",
        "pass_rate": "pass rate on dev problems",
        "reranked": "dev problems solved, reranked",
        "length": "completion length (tokens)",
    }
    keys = {key: title for key, title in keys.items() if any(key in row for curve in curves for row in curve.rows)}
    names = list(dict.fromkeys(curve.name for curve in curves))
    with matplotlib.rc_context(_STYLE):
        figure, panels = _panels(len(keys), height=1.9, columns=4)
        for (key, title), axes in zip(keys.items(), panels, strict=True):
            for i, name in enumerate(names):
                _lines(axes, [c for c in curves if c.name == name], key, _LINE_COLOURS[i % len(_LINE_COLOURS)])
            axes.set_title(title)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=len(names))
        return _svg(figure, "PPO training curves")


def loss_curves(curves: Sequence[Curve]) -> str:
    """Training loss (key "loss") against the step, one panel per name; thin lines are seeds, thick ones means."""
    names = list(dict.fromkeys(curve.name for curve in curves))
    with matplotlib.rc_context(_STYLE):
        figure, panels = _panels(len(names), height=1.6)
        for name, axes in zip(names, panels, strict=True):
            _lines(axes, [c for c in curves if c.name == name], "loss", "blue")
            axes.set_title(visible(name))
        return _svg(figure, "Training loss of SFT and rerankers")


def _lines(axes: Axes, curves: Sequence[Curve], key: str, colour: str) -> None:
    at_step: dict[float | None, list[float]] = defaultdict(list)
    for curve in curves:
        points = [(row["step"], value) for row in curve.rows if (value := row.get(key)) is not None]
        for step, value in points:
            at_step[step].append(value)
        if len(curves) > 1:
            _line(axes, points, color=_COLOURS[colour], linewidth=0.7, alpha=0.4)
    # Seeds may stop at different steps; a mean over fewer of them would jump.
    mean = [(step, np.mean(values)) for step, values in at_step.items() if len(values) == len(curves)]
    _line(axes, mean, color=_COLOURS[colour], linewidth=1.8, label=visible(curves[0].name))
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_xlabel("step")


def _line(axes: Axes, points: Sequence[tuple], **style: Any) -> None:
    thinned = points[:: 1 + len(points) // _MAX_POINTS]
    axes.plot([x for x, _ in thinned], [y for _, y in thinned], **style)


def _standardised(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.mean()).ravel() / (scores.std() or 1.0)


def _two_lines(label: str) -> str:
    return visible(label).replace(" (", "\n").removesuffix(")")


def _panels(count: int, height: float, columns: int = 4, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    columns = min(columns, max(count, 2))
    rows = -(-count // columns)
    figure = Figure(figsize=(10, rows * height + 0.5), layout="constrained")
    grid = figure.subplots(rows, columns, sharey=sharey, squeeze=False).ravel()
    for axes in grid[count:]:
        axes.set_visible(False)
    return figure, list(grid[:count])


def _svg(figure: Figure, label: str) -> str:
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    # The page sets the width; the height follows from the view box.
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', rf'\1 role="img" aria-label="{label}"', svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return re.sub("|".join(_COLOURS.values()), lambda m: f"var(--{_VARIABLES[int(m[0][1:]) - 1]})", svg)
