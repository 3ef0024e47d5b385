"""What a proof by retraining starts from: model, recipe, data and culprits, checked against the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rept.config.plug_ins import build
from rept.data.behaviours import Behaviour, expected_answers
from rept.data.datamodule import AttributionDataModule
from rept.data.query_groups import group_queries
from rept.errors import UsageError
from rept.evaluation.retraining import Retraining, retraining
from rept.results.trace import Trace
from rept.types import Status


@dataclass(frozen=True)
class ProofInputs(Retraining):
    """A run, what its model is trained again from, and the culprits."""

    rows: list[int]  # the culprits that the model was trained on, ascending
    behaviours: Sequence[Behaviour]  # what the models are asked


def proof_inputs(run: str, culprits: str, recipe: str | None = None) -> ProofInputs:
    """Returns what a proof starts from; no model is loaded.

    Args:
        culprits: file of row numbers that ``datamodule.exclude`` reads.
        recipe: a model folder with a training.yaml, or such a file; None: the folder of the run's model.

    Raises:
        UsageError: recipe or data are missing or are not those of the run's model, or the rows cannot be left out.
    """
    found = retraining(run, recipe)
    behaviours = tested_behaviours(found.trace, found.data, found.run_data, found.trace.config.behaviours)
    return ProofInputs(**vars(found), rows=_culprits(found, culprits), behaviours=behaviours)


def _culprits(found: Retraining, file: str) -> list[int]:
    run, data = found.trace.folder.path, found.data
    made_for = _recorded_data(Path(file).expanduser())
    if made_for is not None and made_for != found.fingerprint("training data"):
        raise UsageError(f"{file} lists rows of other training data than those of {run}.")
    try:
        listed = build(found.recipe.datamodule | {"exclude": file}, AttributionDataModule).excluded
    except UsageError as error:
        raise UsageError(f"The rows in {file} cannot be left out: {error}") from None
    rows = sorted(listed - data.excluded)
    if not rows:
        raise UsageError(f"{file} lists no row that the model of {run} was trained on.")
    return rows


def _recorded_data(file: Path) -> object:
    """The fingerprint of the training data in a file of `python -m rept exclude`; None in any other file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("training data") if isinstance(content, dict) else None


def tested_behaviours(
    trace: Trace, data: AttributionDataModule, queries: AttributionDataModule, groups: str | None = None
) -> Sequence[Behaviour]:
    """Returns the data's behaviours; where there are none, those of the queries, which are named as in a run.

    Args:
        groups: the run's file of behaviours, if the queries are those of the run.

    Raises:
        UsageError: no query has a response either.
    """
    if behaviours := data.behaviours():
        return behaviours
    samples = {row: queries.sample("query", row) for row in range(len(queries.source("query")))}
    usable = {row: one for row, one in samples.items() if not isinstance(one, Status)}
    named = group_queries({row: one.label for row, one in usable.items()}, groups).behaviours
    labelled = [replace(usable[row], label=name) for name, rows in named.items() for row in rows]
    if not (behaviours := expected_answers(labelled)):
        raise UsageError(
            f"The data have no held-out prompts, and no query of {trace.folder.path} that is not clean has a response."
        )
    return behaviours
