"""`report.html`: a run's tables, claims, figures and hardest negatives on one page that fetches nothing."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rerankjax.results import plots, sections
from rerankjax.results.claims import Finding, best_finding, findings_of, tally
from rerankjax.results.evaluation import Evaluation
from rerankjax.results.markup import block, figure, folded, page, preformatted, section, table, text
from rerankjax.results.render import (
    ABSENT,
    ALONE,
    best_text,
    caption,
    further_rows,
    reranked,
    second_iteration_text,
    table_rows,
)
from rerankjax.results.results import Results
from rerankjax.results.selection import RULE_HEADS, RULES
from rerankjax.results.statistics import Estimate, decimal


@dataclass(frozen=True)
class HardNegative:
    """A completion that the reranker of `seed` scored high and that failed a test; `failure`: the end of its output."""

    seed: int
    problem: str
    prompt: str
    completion: str
    score: float
    failure: str


class StageCost(NamedTuple):
    """What a stage took: seconds, peak memory (bytes, 0: unknown), and the fraction of its computed tokens that were
    real, not padding (None: the stage computes no tokens)."""

    seconds: float
    peak_bytes: int
    real_tokens: float | None


@dataclass(frozen=True)
class RunFacts:
    """Where the figures come from.

    `stages` has each stage's cost, `versions` each package's version, and `host` is the processor. `assumptions` gives,
    by config field, the reason for a value that no source states.
    """

    command: str
    config: str
    stages: Mapping[str, StageCost]
    versions: Mapping[str, str]
    host: str
    assumptions: Mapping[str, str] = dataclasses.field(default_factory=dict)


def report(
    results: Sequence[Results],
    evaluations: Sequence[Evaluation],
    run: RunFacts,
    ppo: Sequence[plots.Curve] = (),
    losses: Sequence[plots.Curve] = (),
    negatives: Sequence[HardNegative] = (),
) -> str:
    """The whole page: a group of sections for each evaluation set, then the training and the run.

    Args:
      results: what `summarise` returned for the evaluations; the headline shows the first.
      evaluations: the samples, for the score distributions.
      run: command, config, stages, versions, host, assumptions.
      ppo: one curve for every policy and seed, rows with the keys step, score, kl, pass_rate, reranked, length.
      losses: one curve for every model and seed, rows with the keys step and loss.
      negatives: failing completions, the hardest first.

    Returns:
      HTML without references to other files. Text from a model, a sandbox or a config is escaped, and its invisible
      characters are shown; the page's content policy also forbids scripts and fetches.
    """
    groups, links = "", []
    for i, of_set in enumerate(results):
        if len(results) == 1:
            groups += _set_sections(of_set, evaluations, level=2)
        else:
            title = f"Evaluation set {text(of_set.evaluation_set)}"
            groups += section(title, _set_sections(of_set, evaluations, level=3), f"set-{i}")
            links.append((f"set-{i}", title))
    gallery = f"<p>{_NEGATIVES}</p>" + "".join(_negative(negative) for negative in negatives)
    run_sections = [
        ("ppo", "PPO", figure(plots.ppo_curves(ppo), _PPO) if ppo else ""),
        ("losses", "Training losses", figure(plots.loss_curves(losses), _SEEDS) if losses else ""),
        ("negatives", "The hardest negatives", gallery if negatives else ""),
        ("run", "The run", _run(run, results[0])),
    ]
    shown = [part for part in run_sections if part[2]]
    links += [(anchor, title) for anchor, title, _ in shown]
    items = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title in links)
    navigation = f"<nav>{items}</nav>\n" if len(results) > 1 else ""
    parts = "".join(section(title, body, anchor) for anchor, title, body in shown)
    return page("rerankjax: a run of the self-training loop", f"{_headline(results[0])}\n{navigation}{groups}{parts}")


def _set_sections(results: Results, evaluations: Sequence[Evaluation], level: int) -> str:
    parts = {
        "What this run shows": _claims(findings_of(results)),
        "The table": _table(results),
        **({"Further rules": sections.further_rules(results)} if further_rows(results) else {}),
        "Choosing among more samples": figure(plots.solved_fraction(results), _SOLVED) + sections.pass_at_k(results),
    }
    if reranked(results):
        distributions = figure(plots.score_distributions(evaluations, results), _DISTRIBUTIONS)
        parts["Telling correct from incorrect"] = distributions + sections.rerankers(results)
        parts["Calibration of the scores"] = figure(plots.reliability(results), sections.RELIABILITY)
    if len(results.languages) > 1:
        parts["By language"] = sections.languages(results)
    if results.divergences:
        parts["Quality and KL"] = figure(plots.solved_by_divergence(results), _BY_KL) + sections.divergences(results)
    parts["Quality and cost"] = sections.costs(results)
    return "".join(section(title, body, level=level) for title, body in parts.items())


_SOLVED = (
    "Expected fraction of problems solved when a rule chooses among a random 1, 2, 4, … of the samples; bands are 95% "
    "intervals. The oracle knows the tests, so its line is pass@k. The greedy answer is the same for any number of "
    "samples, so its line is level. If a reranker chooses worse among more samples, it was over-optimised: the policy "
    "has learned to produce programs that the reranker scores too high."
)
_BY_KL = (
    "Fraction solved against the square root of the KL to the SFT model. The line is the SFT model's best of n = "
    "1, 2, 4, … by its reranker, with a KL of log n - (n - 1)/n. Each policy has two joined marks: a circle for one "
    "sample, and a square for its reranker's choice of n. A policy above the line solves more than best-of-n at the "
    "same KL."
)
_DISTRIBUTIONS = "The less the two histograms overlap, the better the reranker can choose."
_SEEDS = "Thin lines are seeds, and the thick line is their mean."
_PPO = f"{_SEEDS} A score that rises while the pass rate falls is reward hacking."
_NEGATIVES = (
    "Programs that failed a test although the reranker scored them highest. The next reranker trains on them. The "
    "prompt is grey; the model wrote the rest."
)
_TABLE = (
    "PPO was trained against reranker 1. Reranker 2 was trained further, on the data in brackets. PPO 2 was trained "
    "from the SFT model again, against reranker 2. ″: the same samples as the row above, so the same figure. "
    f"{ABSENT}: no reranker. AUC: how often a correct sample outscores an incorrect one. Bold: the highest figure "
    "except the oracle's."
)
_CLAIMS = (
    "Each claim is a difference between two fractions of solved problems, on the same problems. A claim is shown if "
    "its whole 95% interval is above 0, contradicted if the interval is below 0, and not shown if the interval "
    "contains 0. Intervals are over other problems of this kind, not over other training runs; the seeds show how "
    "training runs differ."
)


def _headline(results: Results) -> str:
    n, first, ranked = results.samples, results.systems[0], reranked(results)
    tiles = [(first.policy_label, "greedy answer", first.system, "greedy")]
    for system in (ranked[0], ranked[-1]) if ranked else ():
        tiles.append((system.policy_label, "one sample", system.system, "random"))
        tiles.append((system.label, f"best-scored of {n}", system.system, "reranker"))
    boxes = ""
    for who, how, name, rule in dict.fromkeys(tiles):
        f = results.figure(name, rule)
        boxes += (
            f'<div class="tile"><b>{100 * f.value:.1f}%</b><small>{100 * f.low:.1f} to {100 * f.high:.1f}%</small>'
            f"<span>{text(who)}: {how}</span></div>"
        )
    finding = best_finding(results)
    best = f" {text(best_text(finding))}" if finding else ""
    best += f" {text(second_iteration_text(results))}"
    return f"""<header><h1>Iterative self-training with a reinforced reranker</h1>
<p class="lead">A model writes {n} programs for every problem; a reranker, which never sees the tests, chooses one. PPO
then trains the model to raise the reranker's scores, and so finds programs that the reranker scores too high. The
reranker is retrained on these.
Figures are fractions of held-out problems whose chosen program passes every test.</p>
<div class="tiles">{boxes}</div>
<p class="tally">Of the claims below: {tally(findings_of(results))}.{best}</p></header>"""


def _claims(findings: tuple[Finding, ...]) -> str:
    measured = [f.difference for f in findings if f.difference]
    low, high = min([0.0, *(d.low for d in measured)]), max([0.01, *(d.high for d in measured)])
    rows, absent = [], ""
    for f in findings:
        paper = f" <small>The paper: {f.claim.paper}.</small>" if f.claim.paper else ""
        description = f"<b>{f.claim.title}.</b> {f.claim.sentence}{paper}"
        if f.difference is None:
            absent += f"<li>{description}</li>"
            continue
        kind = f.verdict.replace(" ", "-")
        chip = f'<span class="chip {kind}">{f.verdict}</span>'
        whisker = _whisker(f.difference, kind, low, high)
        rows.append([chip, description, whisker, f.interval(), f.seeds_above(), f.alone(), text(f.p_value())])
    header = ["here", "claim", "difference", "with its interval", "seeds &gt; 0", "alone", "p"]
    body = f'<p>{_CLAIMS}</p>{table("claims", header, rows)}<p class="note">{ALONE}</p>' if rows else ""
    return body + (folded("Claims that this config did not run", f"<ul>{absent}</ul>") if absent else "")


def _whisker(d: Estimate, kind: str, low: float, high: float) -> str:
    start, value, end, zero = (6 + 168 * (x - low) / (high - low) for x in (d.low, d.value, d.high, 0.0))
    return (
        f'<svg class="whisker {kind}" viewBox="0 0 180 24" role="img" aria-label="{d.text("+")}">'
        f'<path class="zero" d="M{zero:.1f} 0V24"/><path d="M{start:.1f} 12H{end:.1f}M{start:.1f} 8v8M{end:.1f} 8v8"/>'
        f'<circle cx="{value:.1f}" cy="12" r="3.5"/></svg>'
    )


def _table(results: Results) -> str:
    systems = table_rows(results)
    # The oracle, the last rule, does not compete.
    best = max(cell.value for _, cells, _ in systems for cell in cells[:-1] if isinstance(cell, Estimate))
    rows = []
    for label, (*cells, oracle), auc in systems:
        shown = [sections.cell(c, bold=isinstance(c, Estimate) and c.value == best) for c in cells]
        rows.append([text(label), *shown, sections.cell(oracle), sections.cell(auc)])
    header = ["samples, reranker", *RULE_HEADS.values()]
    body = table("figures", [*header, "AUC"], rows) + f'<p class="note">{caption(results)} {_TABLE}</p>'
    if len(results.seeds) == 1:
        return body
    by_seed = []
    for system in results.systems:
        for seed in results.seeds:
            figures = [results.find(system.system, rule, seed=seed) for rule in RULES]
            by_seed.append([text(system.label), str(seed), *(decimal(f.value) if f else ABSENT for f in figures)])
    return body + folded("Each seed separately", table("figures", [header[0], "seed", *header[1:]], by_seed))


def _negative(negative: HardNegative) -> str:
    return (
        f"<article><h3>{text(negative.problem)} <small>seed {negative.seed}</small>"
        f'<span class="score">score {negative.score:+.2f}</span></h3>'
        + preformatted(
            f'<span class="prompt">{block(negative.prompt, keep_end=True)}</span>{block(negative.completion)}'
        )
        + preformatted(block(negative.failure.rstrip(), keep_end=True), "failure")
        + "</article>\n"
    )


def _run(run: RunFacts, results: Results) -> str:
    took = [[text(stage), *_stage_cells(cost)] for stage, cost in run.stages.items()]
    took.append(["all stages", _duration(sum(cost.seconds for cost in run.stages.values())), "", ""])
    made_by = {"processor": run.host, **run.versions, "config digest": results.config_digest}
    assumed = [[text(field), text(reason)] for field, reason in run.assumptions.items()]
    return (
        preformatted(text(run.command))
        + '<div class="columns">'
        + table("facts", ["stage", "time", "peak memory", "real tokens"], took)
        + table("facts", ["produced by", ""], [[text(name), text(value)] for name, value in made_by.items()])
        + f"</div>{folded('Config', preformatted(text(run.config)))}"
        + (folded("Assumptions", table("reasons", ["config field", "why"], assumed)) if assumed else "")
    )


def _stage_cells(cost: StageCost) -> list[str]:
    peak = f"{cost.peak_bytes / 1e9:.3g} GB" if cost.peak_bytes else ABSENT
    return [_duration(cost.seconds), peak, ABSENT if cost.real_tokens is None else f"{cost.real_tokens:.2f}"]


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
