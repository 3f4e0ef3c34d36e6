"""Several runs beside each other: what their configs differ in, what each solves, and what each says of the claims."""

from collections.abc import Mapping

from rerankjax.results.claims import judge
from rerankjax.results.evaluation import ARMS
from rerankjax.results.render import pipes, table_rows
from rerankjax.results.results import Results
from rerankjax.results.selection import RULE_HEADS


def comparison(runs: Mapping[str, tuple[Mapping[str, str], Results]]) -> str:
    """Tables in Markdown, a column for each run.

    Args:
      runs: by the run's name, its config's fields as text, and its results.
    """
    configs, found = [config for config, _ in runs.values()], [results for _, results in runs.values()]
    fields = {field: [config.get(field, "") for config in configs] for field in sorted({f for c in configs for f in c})}
    solved = [_solved(results) for results in found]
    rows = [f"{label}: {head}" for label in ARMS.values() for head in RULE_HEADS.values()]
    claims = {
        of_claim[0].claim.title: [f"{f.verdict} {f.interval()}" if f.difference else "" for f in of_claim]
        for of_claim in zip(*map(judge, found), strict=True)
    }
    sections = {
        "What differs": {field: values for field, values in fields.items() if len(set(values)) > 1},
        "Solved": {row: [of_run.get(row, "") for of_run in solved] for row in rows if any(row in s for s in solved)},
        "Claims": {title: texts for title, texts in claims.items() if any(texts)},
    }
    tables = (
        f"## {title}\n\n" + pipes(["", *runs], ([first, *rest] for first, rest in of_section.items()))
        for title, of_section in sections.items()
    )
    return "\n".join(tables)


def _solved(results: Results) -> dict[str, str]:
    """What each arm solves by each rule that looks at more than the samples, or that an earlier arm did not show."""
    return {
        f"{label}: {head}": cell.text()
        for label, cells, _ in table_rows(results)
        for head, cell in zip(RULE_HEADS.values(), cells, strict=True)
        if cell is not None
    }
