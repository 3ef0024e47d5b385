"""Ranks the stored signatures of a finished run again; the model is not needed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rept.calibration.references import check_calibration
from rept.config.compose import compose
from rept.config.plug_ins import build
from rept.config.schema import RANKING, TARGET, AttributeConfig
from rept.data.datamodule import AttributionDataModule
from rept.errors import UsageError
from rept.ranking.scorer import Scorer
from rept.report.terminal import show_trace
from rept.results.run_folder import RunFolder
from rept.results.trace import Trace
from rept.run.checks import check_behaviours, check_numbers
from rept.run.rank_stage import Scoring
from rept.run.recorded import check_rebuildable
from rept.utils.console import say
from rept.utils.json_files import read_jsonl

IN_MEMORY = "datamodules.in_memory.InMemoryData"


def score(arguments: Sequence[str]) -> Trace:
    """Ranks the stored signatures of a run again: ``[RUN, "scorer=...", "out=..."]``, as on the command line.

    Raises:
        UsageError: no run there, no folder for the results, or a scorer that needs what is not stored.
    """
    source, config = reopen(arguments, RANKING)
    result = rescore(source, RunFolder(config.out), config)
    show_trace(result)
    say(f"All results are in {result.folder.path}.")
    return result


def reopen(arguments: Sequence[str], keys: Sequence[str]) -> tuple[RunFolder, AttributeConfig]:
    """Returns the run folder that a command line names, and the run's configuration with the other arguments applied.

    Args:
        arguments: the folder and ``key=value``, among them ``out``.
        keys: what may be set. Everything else describes the stored signatures and cannot change.

    Raises:
        UsageError: no run there, an argument that sets something else or does not fit, or an ``out`` that is missing or
            has files that were not made by ranking stored signatures.
    """
    folders = [argument for argument in arguments if "=" not in argument]
    if len(folders) != 1:
        raise UsageError(f"Expected one run folder, such as runs/demo, and key=value, but got {len(folders)} folders.")
    settings = [argument for argument in arguments if "=" in argument]
    for argument in settings:
        if argument.partition("=")[0].partition(".")[0] not in keys:
            raise UsageError(
                f"{argument}: the signatures of a run stay as they are, so only {', '.join(keys)} can be set."
            )
    source = RunFolder(folders[0])
    base = source.open_existing()
    base.out = str(source.path)
    config = compose(AttributeConfig, settings, base=base)
    if Path(config.out).resolve() == source.path.resolve():
        raise UsageError(
            f"Expected out= to name a folder for the new results, such as out={source.path}-again, because those in "
            f"{source.path} stay as they are."
        )
    RunFolder(config.out).check_replaceable()
    return source, config


def stored_data(source: RunFolder, config: AttributeConfig) -> AttributionDataModule:
    """Returns the data of a finished run, with the answers that its model gave.

    Raises UsageError if the samples were given in Python and are not in the run folder.
    """
    copied = {path.stem: read_jsonl(path) for path in source.samples.glob("*.jsonl")}  # of rept.trace
    if not copied and config.datamodule[TARGET] == IN_MEMORY:
        raise UsageError(
            f"The samples of {source.path} were given in Python and are not in the folder: name one by "
            "rept.trace(..., out=), which copies them once the run is finished."
        )
    datamodule = build(config.datamodule, AttributionDataModule, **copied)
    datamodule.answers.update(source.known_answers())
    return datamodule


def rescore(source: RunFolder, out: RunFolder, config: AttributeConfig) -> Trace:
    """Ranks the stored signatures of ``source`` by ``config.scorer``, into ``out``."""
    check_numbers(config)
    check_rebuildable(config.scorer, "scorer")
    datamodule, scorer = stored_data(source, config), build(config.scorer, Scorer)
    scoring = Scoring(source, out, config, datamodule, scorer)
    if config.calibration.rate is not None:
        check_calibration(config.calibration, scoring.comparable, scorer.needs)
    check_behaviours(config, scoring.queries)
    with out.lock(), out.stage("rank"):
        scoring.run()
    return Trace(out.path)
