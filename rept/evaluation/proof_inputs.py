"""What a proof by retraining starts from: model, recipe, data and culprits, checked against the run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rept.config.compose import read_yaml
from rept.config.plug_ins import build
from rept.config.schema import TrainConfig
from rept.data.behaviours import Behaviour, expected_openings
from rept.data.datamodule import AttributionDataModule
from rept.data.samples import Sample
from rept.errors import UsageError
from rept.results.trace import Trace
from rept.run.rescore import stored_data
from rept.training.model_folder import ModelFolder
from rept.training.recipe import changes, read_recipe
from rept.types import Status

# Settings in which a given recipe may differ from the model's own, because their content is compared instead.
_MOVED_DATA = ("datamodule.train", "datamodule.queries")
_MOVED = (*_MOVED_DATA, "model.path")


@dataclass(frozen=True)
class ProofInputs:
    """A run, and what its model is trained again from.

    Attributes:
        trace: of the run.
        path: of the run's model, or of the base model of its adapter.
        model: the folder of the run's model.
        recipe: of its training.
        data: of the recipe; their training rows are the run's.
        rows: the culprits that the model was trained on, ascending.
        behaviours: what the models are asked.
    """

    trace: Trace
    path: str
    model: ModelFolder
    recipe: TrainConfig
    data: AttributionDataModule
    rows: list[int]
    behaviours: Sequence[Behaviour]

    def fingerprint(self, name: str) -> object:
        """Returns one of the run's fingerprints; None if it was not recorded."""
        return _fingerprint(self.trace, name)


def proof_inputs(run: str, culprits: str, recipe: str | None = None) -> ProofInputs:
    """Returns what a proof starts from; no model is loaded.

    Args:
        run: folder of the run that found the culprits.
        culprits: file of row numbers that ``datamodule.exclude`` reads.
        recipe: a model folder with a training.yaml, or such a file; None: the folder of the run's model.

    Raises:
        UsageError: recipe or data are missing or are not those of the run's model, or the rows cannot be left out.
    """
    trace = Trace(run)
    run_data = stored_data(trace.folder, trace.config)
    path = trace.config.model.path or run_data.default_model
    if path is None:
        raise UsageError(
            f"The model of {run} was given in Python and is not on disk: save it, and trace it by attribute.py with "
            "model.path=."
        )
    model = ModelFolder(trace.config.model.adapter or path)
    config = _recipe(model, recipe)
    if not config.datamodule:
        config = replace(config, datamodule=dict(trace.config.datamodule))
    data = build(config.datamodule, AttributionDataModule)
    _check_data(trace, run_data, data)
    rows = _culprits(trace, config, data, culprits)
    return ProofInputs(trace, path, model, config, data, rows, _held_out(trace, run_data, data))


def _recipe(model: ModelFolder, given: str | None) -> TrainConfig:
    if not model.config.is_file():
        if given is None:
            raise UsageError(
                f"{model.path} has no {model.config.name}, so train.py did not make this model: give its recipe (base "
                "model, data, hyperparameters) by recipe=FOLDER_OR_YAML."
            )
        return read_recipe(given)
    recipe = read_recipe(given or model.path)
    moved = _MOVED if model.base_weights else _MOVED_DATA
    if different := changes(read_yaml(model.config), asdict(recipe), moved):
        raise UsageError(
            f"recipe={given} is not the recipe of {model.path}: {different}. Leave out recipe=, or change only the "
            "paths of data and base model."
        )
    return recipe


def _check_data(trace: Trace, run_data: AttributionDataModule, data: AttributionDataModule) -> None:
    """Raises UsageError unless the training rows of the recipe's data are those of the run, by content."""
    run, stored = trace.folder.path, _fingerprint(trace, "training data")
    remedy = "Restore them, or give recipe=, a copy of training.yaml with their path."
    try:
        if data.digest("train") == stored:
            return
    except UsageError as error:
        raise UsageError(f"The recipe's training data cannot be read: {error} {remedy}") from None
    if stored is not None and run_data.digest("train") != stored:
        raise UsageError(
            f"The training data have another fingerprint than when {run} was made: restore them, or run attribute.py "
            "again with another out=."
        )
    one, other = run_data.source("train"), data.source("train")
    if len(one) != len(other):
        raise UsageError(f"The recipe's training data have {len(other):,} rows, those of {run} {len(one):,}. {remedy}")
    for row in range(len(one)):
        if _trained_text(one[row]) != _trained_text(other[row]):
            raise UsageError(f"Row {row} of the recipe's training data is not row {row} of {run}. {remedy}")


def _trained_text(sample: Sample | Status) -> object:
    """What training reads of a row: all but its label and spans."""
    return sample if isinstance(sample, Status) else (sample.messages, sample.response)


def _culprits(trace: Trace, config: TrainConfig, data: AttributionDataModule, file: str) -> list[int]:
    made_for, stored = _recorded_data(Path(file).expanduser()), _fingerprint(trace, "training data")
    if made_for is not None and made_for != stored:
        raise UsageError(f"{file} lists rows of other training data than those of {trace.folder.path}.")
    try:
        listed = build(config.datamodule | {"exclude": file}, AttributionDataModule).excluded
    except UsageError as error:
        raise UsageError(f"The rows in {file} cannot be left out: {error}") from None
    rows = sorted(listed - data.excluded)
    if not rows:
        raise UsageError(f"{file} lists no row that the model of {trace.folder.path} was trained on.")
    return rows


def _recorded_data(file: Path) -> object:
    """The fingerprint of the training data in a file of `python -m rept exclude`; None in any other file."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content.get("training data") if isinstance(content, dict) else None


def _held_out(trace: Trace, run_data: AttributionDataModule, data: AttributionDataModule) -> Sequence[Behaviour]:
    """The data's behaviours; where there are none, the run's queries: whether an answer begins as in the run."""
    if found := data.behaviours():
        return found
    samples = [run_data.sample("query", row) for row in range(len(run_data.source("query")))]
    queries = [replace(one, label=one.label or "queries") for one in samples if not isinstance(one, Status)]
    if not (found := expected_openings(queries)):
        raise UsageError(f"The data have no held-out prompts, and no query of {trace.folder.path} has a response.")
    return found


def _fingerprint(trace: Trace, name: str) -> object:
    return trace.provenance.get("fingerprints", {}).get(name)
