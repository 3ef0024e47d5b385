"""A suite of cases: trains models, compares methods on them, and collects each case's figures over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rept.config.compose import compose, read_yaml
from rept.config.plug_ins import build
from rept.config.schema import AttributeConfig, TrainConfig
from rept.config.words import words_of
from rept.data.datamodule import AttributionDataModule
from rept.errors import UsageError
from rept.evaluation.case_figures import CaseFigures, by_behaviour
from rept.evaluation.compare import Outcome, compare
from rept.results.trace import Trace
from rept.training.behaviour_rates import read_rates
from rept.training.finetune import train_model
from rept.training.model_folder import ModelFolder
from rept.utils.console import say
from rept.utils.digests import text_digest


@dataclass(frozen=True)
class Suite:
    """A ``configs/suite/NAME.yaml``: lists of arguments, as on the command lines of train.py.

    A suite that is ``like`` another gives only what differs from it.
    """

    experiments: list[str]
    seeds: list[int]
    model: list[str]
    base: list[str]
    train: list[str]

    @classmethod
    def named(cls, name: str, **changed: Any) -> Suite:
        """Returns the suite of that name with the changes that are not None; raises UsageError if there is none."""
        suites = words_of("suite")
        if name not in suites:
            raise UsageError(f"There is no suite {name!r}. Choices: {', '.join(suites)}.")
        given = read_yaml(suites[name]) | {k: v for k, v in changed.items() if v is not None}
        like = given.pop("like", None)
        return replace(cls.named(like), **given) if like else cls(**given)


def run_suite(suite: Suite, arguments: Sequence[str], out: Path) -> tuple[dict[str, CaseFigures], list[Outcome]]:
    """Trains and compares for each seed, into ``out/seed-N``; finished parts are reused.

    Models are in ``out/models``, named by a digest of their settings and data, so a changed suite trains new ones.

    Args:
        arguments: of ``python -m rept compare``, for all runs.

    Returns:
        The figures of each case by its name, and every method's outcome of every seed.
    """
    cases: dict[str, CaseFigures] = {}
    outcomes: list[Outcome] = []
    models = out / "models"
    for number, seed in enumerate(suite.seeds, start=1):
        say(f"\nSeed {seed} ({number} of {len(suite.seeds)}): the model")
        base = _trained([*suite.model, *suite.base], models)
        here = ["model=pretrained", f"model.path={base}", *suite.train, f"datamodule.seed={seed}", f"seed={seed}"]
        model = _trained(here, models)
        data = [argument for argument in here if argument.startswith("datamodule")]
        asked = [*data, f"datamodule.answered={model / 'answers.jsonl'}", f"model.path={model}", f"seed={seed}"]
        extractors = {name: compose(AttributeConfig, [f"experiment={name}"]).extractor for name in suite.experiments}
        asked += [f"{name}.extractor.base={base}" for name, one in extractors.items() if "base" in one]
        done = compare(suite.experiments, [*asked, *arguments], out / f"seed-{seed}")
        outcomes += done
        _count(cases, ModelFolder(model))
        for outcome in done:
            _gather(cases, outcome, seed)
    return cases, outcomes


def _trained(arguments: Sequence[str], models: Path) -> Path:
    """The folder of the model that these arguments of train.py make; trained if it is not complete."""
    config = compose(TrainConfig, [*arguments, f"out={models}"])
    config.out = str(models / _digest(config))
    if ModelFolder(config.out).complete:  # its name identifies the training, wherever the suite has been moved since
        say(f"{config.out} already holds this model.")
    else:
        train_model(config)
    return Path(config.out)


def _digest(config: TrainConfig) -> str:
    """Of all that decides the weights: the settings, and the content of the data."""
    settings = {key: value for key, value in asdict(config).items() if key != "out"}
    if settings["model"].get("path"):  # the first model, whose folder is named by its own digest
        settings["model"]["path"] = Path(settings["model"]["path"]).name
    return text_digest(str(settings), build(config.datamodule, AttributionDataModule).digest("train"))[:12]


def _case(label: str) -> str:
    """A label is a case, or one part of it after a colon."""
    return label.partition(":")[0]


def _count(cases: dict[str, CaseFigures], model: ModelFolder) -> None:
    for label, rate in read_rates(model.behaviours).items():
        case = cases.setdefault(_case(label), CaseFigures())
        case.asked += rate.triggered
        case.shown += round(rate.triggered * (rate.success or 0.0))


def _gather(cases: Mapping[str, CaseFigures], outcome: Outcome, seed: int) -> None:
    """Adds the average precision of each query, and of its behaviour, by one method on one seed."""
    if outcome.reason is not None:
        return
    label = {line["query"]: line["label"] for line in Trace(outcome.folder).queries}
    for query, precision in zip(outcome.queries["query"], outcome.queries["average_precision"], strict=True):
        if precision is None:  # an absent cause has no culprits to find
            continue
        case = cases[_case(label[query])]
        case.add(outcome.experiment, seed, precision)
        if (together := outcome.behaviours.get(label[query], {}).get("average_precision")) is not None:
            case.add(by_behaviour(outcome.experiment), seed, together)
