"""Several runs side by side: where their configs differ, what each solves, and what each says about the claims."""

import json
from collections.abc import Mapping, Sequence

from rerankjax.results.claims import findings_of
from rerankjax.results.render import pipes, table_rows
from rerankjax.results.results import Results
from rerankjax.results.selection import FURTHER_HEADS, RULE_HEADS
from rerankjax.results.statistics import Estimate


def comparison(runs: Mapping[str, tuple[Mapping[str, object], Sequence[Results]]]) -> str:
    """Tables in Markdown, one column per run: the configs' differences, then each evaluation set's figures.

    Args:
      runs: each run's config by dotted field, and its results, by the run's name.
    """
    configs = [{field: _shown(value) for field, value in config.items()} for config, _ in runs.values()]
    fields = {field: [config.get(field, "") for config in configs] for field in sorted({f for c in configs for f in c})}
    tables = {"What differs": {field: values for field, values in fields.items() if len(set(values)) > 1}}
    run_sets = [{of_set.evaluation_set: of_set for of_set in results} for _, results in runs.values()]
    names = dict.fromkeys(name for sets in run_sets for name in sets)
    for name in names:
        place = f" on {name}" if len(names) > 1 else ""
        of_set = [sets.get(name) for sets in run_sets]
        tables[f"Solved{place}"] = _beside([_solved(results) if results else {} for results in of_set])
        tables[f"Claims{place}"] = _beside([_claims(results) if results else {} for results in of_set])
    return "\n".join(
        f"## {title}\n\n" + pipes(["", *runs], ([first, *rest] for first, rest in rows.items()))
        for title, rows in tables.items()
    )


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _beside(columns: Sequence[Mapping[str, str]]) -> dict[str, list[str]]:
    """Each run's text for every row; "" where a run lacks the row."""
    rows = dict.fromkeys(row for column in columns for row in column)
    return {row: [column.get(row, "") for column in columns] for row in rows}


def _solved(results: Results) -> dict[str, str]:
    """What each system solves by each rule, except where an earlier system has the same samples."""
    heads = RULE_HEADS | FURTHER_HEADS
    return {
        f"{label}: {head}": cell.text()
        for label, cells, _ in table_rows(results, heads)
        for head, cell in zip(heads.values(), cells, strict=True)
        if isinstance(cell, Estimate)
    }


def _claims(results: Results) -> dict[str, str]:
    return {f.claim.title: f"{f.verdict} {f.interval()}" for f in findings_of(results) if f.difference}
