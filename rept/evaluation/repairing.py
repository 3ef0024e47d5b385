"""Makes the repair of a run: estimates corrections, measures what they do, and writes both."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rept.config.compose import compose
from rept.config.schema import RepairConfig
from rept.correction.method import RepairMethod
from rept.correction.repair import Repair
from rept.errors import UsageError
from rept.evaluation.repair_estimate import estimated
from rept.evaluation.repair_inputs import repair_inputs
from rept.evaluation.repair_report import measure_repair
from rept.model.freezing import frozen
from rept.results.trace import Trace
from rept.run.recorded import as_node
from rept.types import PreTrainedModel, PreTrainedTokenizerBase
from rept.utils.digests import file_digest, text_digest
from rept.utils.files import lock_folder
from rept.utils.json_files import read_json, write_json
from rept.utils.library_logging import quiet

REPORT = "repair.json"


def repair(
    trace: Trace | str | Path,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    behaviours: Sequence[str] | None = None,
    method: str | RepairMethod = "gated_ablation",
    out: str | Path | None = None,
    **settings: Any,
) -> Repair:
    """Makes a repair that switches traced behaviours off while the model runs.

    Args:
        trace: a result of `rept.trace`, or a run folder.
        model, tokenizer: those that were traced, frozen meanwhile; None: loaded from where the run found them.
        behaviours: labels of queries; None: all of the run.
        method: a word of ``configs/method``, or an object of your own.
        out: folder for the repair and its report (``repair.json``); None: nothing is written, and nothing measured.
        settings: any other key of ``configs/repair.yaml``, dots as double underscores: ``rows=50``.

    Raises:
        UsageError: a setting, run or model that cannot be used, in one sentence.
    """
    if (model is None) != (tokenizer is None):
        raise UsageError("Expected both model and tokenizer, or neither to load those of the run.")
    words = [f"method={method}"] if isinstance(method, str) else []
    config = compose(RepairConfig, words, given={name.replace("__", "."): value for name, value in settings.items()})
    trace = trace if isinstance(trace, Trace) else Trace(trace)
    loaded = None if model is None or tokenizer is None else (model, tokenizer)
    made = None if isinstance(method, str) else method
    if made is not None:
        config.method = as_node(made)
    with frozen(model) if model is not None else nullcontext():
        if out is not None:
            config.out = str(out)
            return repair_run(trace, config, behaviours, loaded, made)[0]
        return estimated(repair_inputs(trace, config, behaviours, loaded), config, made)[0]


def repair_run(
    trace: Trace,
    config: RepairConfig,
    behaviours: Sequence[str] | None = None,
    loaded: tuple[PreTrainedModel, PreTrainedTokenizerBase] | None = None,
    method: RepairMethod | None = None,
) -> tuple[Repair, dict[str, Any]]:
    """Makes the repair of a run and its report in ``config.out``, or returns the finished ones from there.

    Raises:
        UsageError: the folder holds a repair that was made by other settings.
    """
    quiet()
    out = Path(config.out or trace.folder.repair)
    settings = {name: value for name, value in asdict(config).items() if name != "out"}
    made_by = {"run": _results(trace), "behaviours": list(behaviours) if behaviours else None} | settings
    with lock_folder(out):
        if (out / REPORT).is_file():
            report = read_json(out / REPORT)
            if different := [name for name in made_by if report["made_by"].get(name) != made_by[name]]:
                raise UsageError(
                    f"{out} holds a repair that was made with another {', '.join(different)}: name another folder by "
                    "out=, or delete this one."
                )
            return Repair.load(out), report
        start, inputs = time.perf_counter(), repair_inputs(trace, config, behaviours, loaded)
        found, chosen = estimated(inputs, config, method)
        seconds = round(time.perf_counter() - start, 1)
        found.save(out)
        report = {"made_by": made_by, "seconds": seconds} | measure_repair(inputs, config, chosen)
        write_json(out / REPORT, report)
    return found, report


def _results(trace: Trace) -> str:
    """A digest of what a repair starts from, so that a run is recognized wherever its folder is."""
    folder = trace.folder
    files = (folder.results, folder.behaviours, folder.words)
    return text_digest(*(file_digest(path) if path.is_file() else "" for path in files))
