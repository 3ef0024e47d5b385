"""A run, and what its model is trained again from: its recipe and data, checked against the run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rept.config.compose import read_yaml
from rept.config.plug_ins import build
from rept.config.schema import TARGET, AttributeConfig, TrainConfig
from rept.data.datamodule import AttributionDataModule
from rept.data.samples import Sample
from rept.errors import UsageError
from rept.results.trace import Trace
from rept.run.prepare import load_configured
from rept.run.rescore import stored_data
from rept.signatures.fingerprint import of_adapter, of_weights
from rept.training.initial_model import ModelAndTokenizer, initial_model
from rept.training.model_folder import ModelFolder
from rept.training.recipe import changes, read_recipe
from rept.types import PreTrainedModel, Status
from rept.utils.json_files import read_json
from rept.utils.text import format_count

# Settings in which a given recipe may differ from the model's own, because their content is compared instead.
_MOVED_DATA = ("datamodule.train", "datamodule.queries")
_MOVED = (*_MOVED_DATA, "model.path")


@dataclass(frozen=True)
class Retraining:
    """A run, and what its model is trained again from."""

    trace: Trace
    path: str  # of the run's model, or of the base model of its adapter
    model: ModelFolder  # of the run's model
    recipe: TrainConfig
    data: AttributionDataModule  # of the recipe; their training rows are the run's
    run_data: AttributionDataModule

    def fingerprint(self, name: str) -> object:
        """Returns one of the run's fingerprints."""
        return self.trace.provenance["fingerprints"][name]

    def without(self, rows: Collection[int], out: Path) -> TrainConfig:
        """Returns the recipe of a training that leaves out these rows too."""
        excluded = sorted({*self.data.excluded, *rows})
        data = self.recipe.datamodule | {"exclude": excluded}
        return replace(self.recipe, datamodule=data, resume=None, compare_with=None, out=str(out))

    def attach_base(self) -> None:
        """Gives the data the base model's tokenizer; raises UsageError if that model is missing or has changed."""
        recipe = self.recipe
        try:
            base, tokenizer = initial_model(recipe.model, self.data)
        except UsageError as error:
            raise UsageError(
                f"The recipe's base model cannot be loaded: {error} Restore it, or give recipe=, a copy of "
                "training.yaml with its path."
            ) from None
        known = self.model.base_weights
        if TARGET not in recipe.model and known and of_weights(base) != known:
            raise UsageError(
                f"{recipe.model.get('path')} is not the base model that {self.model.path} was trained from: its "
                "weights have another fingerprint. Restore it, or give recipe=, a copy of training.yaml with the right "
                "path."
            )
        self.data.attach(tokenizer)


def retraining(run: str | Path, recipe: str | None = None) -> Retraining:
    """Returns what the model of a run is trained again from; no model is loaded.

    Args:
        recipe: a model folder with a training.yaml, or such a file; None: the folder of the run's model.

    Raises:
        UsageError: recipe or data are missing or are not those of the run's model.
    """
    trace = Trace(run)
    run_data = stored_data(trace.folder, trace.config)
    path = model_path(trace, run_data, "save it, and trace it by attribute.py with model.path=")
    model = ModelFolder(trace.config.model.adapter or path)
    config = _recipe(model, recipe)
    if not config.datamodule:
        config = replace(config, datamodule=dict(trace.config.datamodule))
    found = Retraining(trace, path, model, config, build(config.datamodule, AttributionDataModule), run_data)
    _check_data(found)
    return found


def model_path(trace: Trace, data: AttributionDataModule, advice: str) -> str:
    """Returns where the model of a run is; raises UsageError, with ``advice``, if it was given in Python."""
    if path := trace.config.model.path or data.default_model:
        return path
    raise UsageError(f"The model of {trace.folder.path} was given in Python and is not on disk: {advice}.")


def load_traced_model(trace: Trace, path: str, config: AttributeConfig) -> ModelAndTokenizer:
    """Returns the model and tokenizer of a run from ``path``; raises UsageError if it is another model by now."""
    model, tokenizer = load_configured(config, path)
    check_traced_model(trace, model, config.model.adapter or path)
    return model, tokenizer


def check_traced_model(trace: Trace, model: PreTrainedModel, name: str) -> None:
    """Raises UsageError if ``model``, which the message calls ``name``, is not the one that a run traced."""
    stored = trace.provenance["fingerprints"]
    for part, now in (("weights", of_weights(model)), ("adapter", of_adapter(model))):
        if stored[part] != now:
            raise UsageError(
                f"{name} is not the model that {trace.folder.path} traced: its {part} have another fingerprint. "
                "Restore it, or run attribute.py again."
            )


def check_traced_data(trace: Trace, data: AttributionDataModule) -> None:
    """Raises UsageError if the training rows are no longer those that a run compared."""
    if trace.provenance["fingerprints"]["training data"] != data.digest("train"):
        raise UsageError(
            f"The training data have another fingerprint than when {trace.folder.path} was made: restore them, or run "
            "attribute.py again with another out=."
        )


def check_plan(file: Path, what: str, plan: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of a JSON file that begins with a plan; if there is none yet, the plan alone.

    Raises:
        UsageError: it is the file of another plan.
    """
    known = read_json(file) if file.is_file() else {what: plan}
    if different := [key for key in plan if known[what].get(key) != plan[key]]:
        raise UsageError(
            f"{file.parent} holds another {what} (other {', '.join(different)}); name another folder by out=."
        )
    return known


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


def _check_data(found: Retraining) -> None:
    """Raises UsageError unless the training rows of the recipe's data are those of the run, by content."""
    run, stored = found.trace.folder.path, found.fingerprint("training data")
    remedy = "Restore them, or give recipe=, a copy of training.yaml with their path."
    try:
        if found.data.digest("train") == stored:
            return
    except UsageError as error:
        raise UsageError(f"The recipe's training data cannot be read: {error} {remedy}") from None
    check_traced_data(found.trace, found.run_data)
    one, other = found.run_data.source("train"), found.data.source("train")
    if len(one) != len(other):
        rows = format_count(len(other), "row")
        raise UsageError(f"The recipe's training data have {rows}, those of {run} {len(one):,}. {remedy}")
    for row in range(len(one)):
        if trained_text(one[row]) != trained_text(other[row]):
            raise UsageError(f"Row {row} of the recipe's training data is not row {row} of {run}. {remedy}")


def trained_text(sample: Sample | Status) -> object:
    """Returns what training reads of a row: all but its label and spans."""
    return sample if isinstance(sample, Status) else (sample.messages, sample.response)
