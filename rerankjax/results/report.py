"""`report.html`: a run's table, claims, figures and hardest negatives on one page that fetches nothing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rerankjax.results import plots, sections
from rerankjax.results.claims import Finding, judge, tally
from rerankjax.results.evaluation import ARMS, Evaluation
from rerankjax.results.markup import block, figure, folded, section, table, text
from rerankjax.results.render import ALONE, caption, table_rows
from rerankjax.results.results import Results
from rerankjax.results.selection import RULE_HEADS, RULES
from rerankjax.results.statistics import Estimate, decimal


@dataclass(frozen=True)
class HardNegative:
    """A completion that the reranker of `seed` scored high and a test refused; `failure` is the end of its output."""

    seed: int
    problem: str
    prompt: str
    completion: str
    score: float
    failure: str


@dataclass(frozen=True)
class Run:
    """Where the figures come from: `durations` in seconds by stage, `versions` by package, `host` its processor."""

    command: str
    config: str
    durations: Mapping[str, float]
    versions: Mapping[str, str]
    host: str


def report(
    results: Results,
    evaluations: Sequence[Evaluation],
    run: Run,
    ppo: Sequence[plots.Curve] = (),
    losses: Sequence[plots.Curve] = (),
    negatives: Sequence[HardNegative] = (),
) -> str:
    """The whole page.

    Args:
      results: what `summarise` made of the evaluations.
      evaluations: the samples, for the score distributions.
      run: command, config, durations, versions, host.
      ppo: one curve for every policy and seed, rows with the keys step, score, kl, pass_rate, length.
      losses: one curve for every model and seed, rows with the keys step and loss.
      negatives: the hardest first.

    Returns:
      HTML without references to other files. What a model or a sandbox wrote is escaped and its invisible characters
      are shown; a policy in the page forbids scripts and fetches besides.
    """
    findings = judge(results)
    parts = [
        section("What this run shows", _claims(findings)),
        section("The table", _table(results)),
        section(
            "Choosing among more samples",
            figure(plots.solved_share(results), _SOLVED_SHARE) + sections.pass_at_k(results),
        ),
        section(
            "Telling correct from incorrect",
            figure(plots.score_distributions(evaluations, results), _DISTRIBUTIONS) + sections.rerankers(results),
        ),
        section("Believing a score", figure(plots.reliability(results), sections.RELIABILITY)),
    ]
    if len(results.languages) > 1:
        parts.append(section("By language", sections.languages(results)))
    parts.append(section("Quality and cost", sections.costs(results)))
    if ppo:
        parts.append(section("PPO", figure(plots.ppo_curves(ppo), _PPO)))
    if losses:
        parts.append(section("Training losses", figure(plots.loss_curves(losses), _SEEDS)))
    if negatives:
        gallery = f"<p>{_NEGATIVES}</p>" + "".join(_negative(negative) for negative in negatives)
        parts.append(section("The hardest negatives", gallery))
    parts.append(section("The run", _run(run, results)))
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>rerankjax: a run of the self-training loop</title>
<style>
{style}</style>
</head>
<body><main>
{_headline(results, findings)}
{"".join(parts)}</main></body>
</html>
"""


_SOLVED_SHARE = (
    "Expected share of problems solved when a rule chooses among a random 1, 2, 4, … of the samples; bands are 95% "
    "intervals. The oracle knows the tests: its line is pass@k. Where more samples make the reranker choose worse, it "
    "was over-optimised: the policy has found what it wrongly likes."
)
_DISTRIBUTIONS = "The less the two overlap, the better the reranker can choose."
_SEEDS = "Thin lines are seeds, the thick one is their mean."
_PPO = f"{_SEEDS} A score that rises while the pass rate falls is reward hacking."
_NEGATIVES = (
    "Programs that failed a test although the reranker scored them highest: what the next reranker learns from. The "
    "prompt is grey; the model wrote the rest."
)
_TABLE = (
    "PPO trained against reranker 1. Reranker 2 was trained further, on the data in brackets; PPO 2 starts again from "
    "the SFT model, against reranker 2. ″: the same samples as the row above, so the same figure. AUC: how often a "
    "correct sample outscores an incorrect one. Bold: the highest figure, the oracle aside."
)
_CLAIMS = (
    "Each claim is a difference between two shares of solved problems, taken on the same problems. It counts as shown "
    "if the whole 95% interval lies above 0, as contradicted if it lies below, and as not shown if it holds 0. "
    "Intervals speak of other problems of this kind, not of other training runs; for those there is each seed's own."
)


def _headline(results: Results, findings: tuple[Finding, ...]) -> str:
    arms, n = [arm.arm for arm in results.arms], results.samples
    tiles = [("SFT", "one sample", "sft", "random"), ("SFT, reranker 1", f"its choice of {n}", "sft", "reranker")]
    tiles += [("PPO", "one sample", "ppo", "random"), (ARMS[arms[-1]], f"its choice of {n}", arms[-1], "reranker")]
    boxes = ""
    for who, how, arm, rule in dict.fromkeys(tiles):
        if arm in arms:
            f = results.figure(arm, rule)
            boxes += (
                f'<div class="tile"><b>{100 * f.value:.1f}%</b><small>{100 * f.low:.1f} to {100 * f.high:.1f}%</small>'
                f"<span>{who}: {how}</span></div>"
            )
    return f"""<header><h1>Iterative self-training with a reinforced reranker</h1>
<p class="lead">A model writes {n} programs for every problem; a reranker, which never sees the tests, chooses one. PPO
then trains the model to please the reranker, and so finds what the reranker wrongly likes; those mistakes retrain it.
Figures are shares of held-out problems whose chosen program passes every test.</p>
<div class="tiles">{boxes}</div>
<p class="tally">Of the claims below: {tally(findings)}.</p></header>"""


def _claims(findings: tuple[Finding, ...]) -> str:
    measured = [f.difference for f in findings if f.difference]
    low, high = min([0.0, *(d.low for d in measured)]), max([0.01, *(d.high for d in measured)])
    rows, absent = [], ""
    for f in findings:
        paper = f" <small>The paper: {f.claim.paper}.</small>" if f.claim.paper else ""
        said = f"<b>{f.claim.title}.</b> {f.claim.sentence}{paper}"
        if f.difference is None:
            absent += f"<li>{said}</li>"
            continue
        kind = f.verdict.replace(" ", "-")
        chip = f'<span class="chip {kind}">{f.verdict}</span>'
        whisker = _whisker(f.difference, kind, low, high)
        rows.append([chip, said, whisker, f.interval(), f.seeds_above(), f.alone(), text(f.p_value())])
    header = ["here", "claim", "difference", "with its interval", "seeds &gt; 0", "alone", "p"]
    page = f'<p>{_CLAIMS}</p>{table("claims", header, rows)}<p class="note">{ALONE}</p>'
    return page + (folded("Claims that this config did not run", f"<ul>{absent}</ul>") if absent else "")


def _whisker(d: Estimate, kind: str, low: float, high: float) -> str:
    start, value, end, zero = (6 + 168 * (x - low) / (high - low) for x in (d.low, d.value, d.high, 0.0))
    return (
        f'<svg class="whisker {kind}" viewBox="0 0 180 24" role="img" aria-label="{d.text("+")}">'
        f'<path class="zero" d="M{zero:.1f} 0V24"/><path d="M{start:.1f} 12H{end:.1f}M{start:.1f} 8v8M{end:.1f} 8v8"/>'
        f'<circle cx="{value:.1f}" cy="12" r="3.5"/></svg>'
    )


def _table(results: Results) -> str:
    arms = table_rows(results)
    # The oracle, the last rule, is not one to compete with.
    best = max(cell.value for _, cells, _ in arms for cell in cells[:-1] if cell)
    rows = []
    for label, (*cells, oracle), auc in arms:
        shown = [sections.cell(cell, bold=cell is not None and cell.value == best) for cell in cells]
        rows.append([label, *shown, sections.cell(oracle), sections.cell(auc) if auc else "undefined"])
    page = table("figures", ["samples, reranker", *RULE_HEADS.values(), "AUC"], rows)
    page += f'<p class="note">{caption(results)} {_TABLE}</p>'
    if len(results.seeds) == 1:
        return page
    by_seed = [
        [ARMS[arm.arm], str(seed), *(decimal(results.figure(arm.arm, rule, seed=seed).value) for rule in RULES)]
        for arm in results.arms
        for seed in results.seeds
    ]
    return page + folded(
        "Each seed alone", table("figures", ["samples, reranker", "seed", *RULE_HEADS.values()], by_seed)
    )


def _negative(negative: HardNegative) -> str:
    return (
        f"<article><h3>{text(negative.problem)} <small>seed {negative.seed}</small>"
        f'<span class="score">score {negative.score:+.2f}</span></h3>'
        f'<pre><span class="prompt">{block(negative.prompt, keep_end=True)}</span>{block(negative.completion)}</pre>'
        f'<pre class="failure">{block(negative.failure.rstrip(), keep_end=True)}</pre></article>\n'
    )


def _run(run: Run, results: Results) -> str:
    times = [(stage, seconds) for stage, seconds in run.durations.items()]
    times.append(("all stages", sum(run.durations.values())))
    made_by = {"processor": run.host, **run.versions, "config digest": results.config_digest}
    return (
        f'<pre>{text(run.command)}</pre><div class="columns">'
        + table("facts", ["stage", "time"], [[text(stage), _duration(seconds)] for stage, seconds in times])
        + table("facts", ["made by", ""], [[text(name), text(value)] for name, value in made_by.items()])
        + f"</div>{folded('Config', f'<pre>{text(run.config)}</pre>')}"
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{seconds // 60:.0f} min {seconds % 60:02.0f} s"
