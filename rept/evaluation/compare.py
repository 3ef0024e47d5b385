"""Compares several methods on the same model and data; each has its own run folder."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rept.config.compose import compose
from rept.config.plug_ins import build
from rept.config.schema import AttributeConfig
from rept.data.datamodule import AttributionDataModule
from rept.errors import UsageError
from rept.evaluation.sanity import Sanity, agreement_with, self_retrieval, shared_hits, shuffled
from rept.results.run_folder import RunFolder
from rept.results.trace import Trace
from rept.run.checks import check_data
from rept.run.pipeline import attribute
from rept.run.prepare import Given, ensure_model, load_configured
from rept.run.rescore import rescore
from rept.store.reader import AttributionStore
from rept.types import SIDES
from rept.utils.console import say
from rept.utils.environment import reset_peak_memory

_RUN = ("report=false", "tokens.hits=0")  # defaults of a comparison, which its arguments may change
_EXTRACTION = ("fit extractor", "extract query", "extract train")
_READ = ("model", "datamodule", "extractor", "layers", "store", "seed", "max_new_tokens")  # what signatures depend on


@dataclass(frozen=True)
class Outcome:
    """One method's row of the table. If it could not run, ``reason`` says why, and the rest is empty."""

    experiment: str
    folder: Path
    reason: str | None = None
    measures: Mapping[str, float] = field(default_factory=dict)  # overall; empty without labels
    labels: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    queries: Mapping[str, Sequence[Any]] = field(default_factory=dict)  # row and average precision of each query
    behaviours: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # measures of rankings by behaviour
    extraction_seconds: float | None = None  # signatures of both sides, and fitting the extractor
    ranking_seconds: float | None = None
    peak_memory_bytes: int | None = None  # of the process, the model included
    bytes_per_sample: float | None = None  # of the store's training side, on disk
    sanity: Sanity = Sanity()

    @property
    def seconds(self) -> float | None:
        if self.extraction_seconds is None or self.ranking_seconds is None:
            return None
        return self.extraction_seconds + self.ranking_seconds


def compare(
    experiments: Sequence[str], arguments: Sequence[str], out: str | Path, checks: Collection[str] = ()
) -> list[Outcome]:
    """Runs each experiment into ``out/NAME``, one after the other in this process; the model is loaded once.

    Finished parts are reused. A method that reads the same signatures as one before it (the same extractor and layers)
    ranks those again: its seconds of extraction are the other's.

    Args:
        experiments: words of ``configs/experiment/``.
        arguments: those of ``python attribute.py``; ``NAME.key=value`` is for experiment NAME alone.
        checks: names of `rept.evaluation.sanity.CHECKS` that are made of each method.

    Raises:
        UsageError: a fault of the arguments, the data or the model, with which no method could run.
    """
    configs = {name: _compose(name, experiments, arguments, out) for name in experiments}
    runs = _Runs(next(iter(configs.values())))
    outcomes: list[Outcome] = []
    for number, (name, config) in enumerate(configs.items(), start=1):
        say(f"\n{name} ({number} of {len(configs)})")
        try:
            outcomes.append(runs(name, config))
        except UsageError as reason:
            say(f"{name} cannot run here: {reason}")
            outcomes.append(Outcome(name, Path(config.out), reason=str(reason)))
    if "randomised" in checks:
        runs.shuffle()
    for i, one in enumerate(outcomes):
        if checks and one.reason is None:
            outcomes[i] = replace(one, sanity=_sanity(one, configs[one.experiment], runs, checks, Path(out)))
    return outcomes


def _compose(name: str, experiments: Sequence[str], arguments: Sequence[str], out: str | Path) -> AttributeConfig:
    """The configuration of one experiment: the arguments of all, then its own."""
    common = [argument for argument in arguments if argument.split(".")[0] not in experiments]
    own = [argument.removeprefix(f"{name}.") for argument in arguments if argument.startswith(f"{name}.")]
    return compose(AttributeConfig, [*_RUN, *common, *own, f"experiment={name}", f"out={Path(out) / name}"])


class _Runs:
    """Makes runs on the model and data of one configuration, which are loaded once, and reuses their signatures."""

    def __init__(self, config: AttributeConfig) -> None:
        self._made_for = config
        datamodule = build(config.datamodule, AttributionDataModule)
        check_data(datamodule, SIDES)  # before the model is loaded
        self._loaded = load_configured(config, ensure_model(config, datamodule))
        self._given = Given(self._loaded, datamodule)
        self._done: list[AttributeConfig] = []
        self.not_shuffled: str | None = None  # why

    def shuffle(self) -> None:
        """Shuffles the model's weights in place, for all runs that follow."""
        self._done = []
        try:
            shuffled(self._loaded[0])
        except UsageError as reason:
            self.not_shuffled = str(reason)

    def given(self, config: AttributeConfig) -> Given | None:
        """What to hand to a run; None for a configuration with another model or other data."""
        return self._given if _same(config, self._made_for, ("model", "datamodule")) else None

    def __call__(self, experiment: str, config: AttributeConfig) -> Outcome:
        """Returns the outcome of a finished run; raises UsageError if it cannot be made."""
        own = RunFolder(config.out)
        twin = next((other for other in self._done if _same(config, other, _READ)), None)
        reset_peak_memory()
        if twin is None or own.store.exists():
            made = _outcome(experiment, attribute(config, self.given(config), show_result=False), own.store)
        else:
            source = RunFolder(twin.out)
            say(f"Signatures of {source.path}: reused.")
            made = _outcome(experiment, rescore(source, own, config), source.store)
        self._done.append(config)
        return made


def _sanity(outcome: Outcome, config: AttributeConfig, runs: _Runs, checks: Collection[str], out: Path) -> Sanity:
    trace, found = Trace(outcome.folder), Sanity()
    if "randomised" in checks:
        say(f"\nSanity check of {outcome.experiment}: a model with shuffled weights")
        found = _randomised(trace, config, runs, out / "shuffled" / outcome.experiment)
    overlap = shared_hits(trace) if "overlap" in checks else None
    return replace(found, overlap=overlap, self_retrieval=self_retrieval(trace) if "self" in checks else None)


def _randomised(trace: Trace, config: AttributeConfig, runs: _Runs, out: Path) -> Sanity:
    """Compares with a run on the shuffled model, with the layers that the real run chose."""
    layers = compose(AttributeConfig, ["layers=fixed", f"layers.layers={trace.layers['layers']}"]).layers
    try:
        if runs.not_shuffled or not runs.given(config):
            raise UsageError(runs.not_shuffled or "It has a model or data of its own.")
        other = runs("", replace(config, layers=layers, out=str(out)))
    except UsageError as reason:
        return Sanity(reason=str(reason))
    return Sanity(randomised=agreement_with(trace, Trace(other.folder)), seconds=other.seconds)


def _same(one: AttributeConfig, other: AttributeConfig, groups: Sequence[str]) -> bool:
    return all(getattr(one, group) == getattr(other, group) for group in groups)


def _outcome(name: str, trace: Trace, folder: Path) -> Outcome:
    stages, metrics, store = trace.provenance["stages"], trace.metrics, AttributionStore(folder, "train")
    extraction = [figures for stage, figures in stages.items() if stage in _EXTRACTION]
    return Outcome(
        experiment=name,
        folder=trace.folder.path,
        measures=metrics.get("overall", {}),
        labels=metrics.get("labels", {}),
        queries=metrics.get("queries", {}),
        behaviours=metrics.get("behaviours", {}),
        extraction_seconds=sum(figures["seconds"] for figures in extraction),
        ranking_seconds=stages["rank"]["seconds"],
        peak_memory_bytes=max(figures["peak_memory_bytes"] for figures in [*extraction, stages["rank"]]),
        bytes_per_sample=store.bytes / len(store.attributed),
    )
