"""Whole runs: `trace` for loaded objects, `attribute` for a configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from lightning import Trainer

from rept.config.compose import compose, is_group
from rept.config.plug_ins import build
from rept.config.schema import AttributeConfig
from rept.data.datamodule import AttributionDataModule
from rept.data.samples import as_dictionaries
from rept.distributed.collectives import barrier
from rept.distributed.signals import StopBetweenBatches
from rept.distributed.supervision import supervised
from rept.errors import UsageError
from rept.model.architecture import Architecture
from rept.model.freezing import frozen
from rept.ranking.scorer import Scorer
from rept.ranking.token_influence import choose_layer
from rept.report.page import write_report
from rept.report.terminal import show_trace
from rept.results.run_folder import RunFolder
from rept.results.trace import Trace
from rept.run import stages
from rept.run.job import Job
from rept.run.prepare import Given, attribution_trainer, prepare
from rept.run.rank_stage import Scoring
from rept.run.recorded import as_description, as_node
from rept.run.rendered_row import rendered_row
from rept.run.token_stage import write_tokens
from rept.signatures.extractor import Extractor, ReadsAllPositions
from rept.signatures.fingerprint import check_fingerprints
from rept.signatures.layer_strategy import LabelledLayerStrategy, LayerStrategy
from rept.signatures.module import AttributionModule
from rept.training.trainer import callbacks_of
from rept.types import SIDES, PreTrainedModel, PreTrainedTokenizerBase
from rept.utils.console import console, say
from rept.utils.digests import text_digest
from rept.utils.environment import environment
from rept.utils.json_files import write_json, write_jsonl

if TYPE_CHECKING:
    import pandas


def trace(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Sequence[Mapping[str, Any]] | pandas.DataFrame,
    queries: Sequence[Mapping[str, Any]] | pandas.DataFrame,
    *,
    out: str | Path | None = None,
    extractor: str | Extractor = "residual_stream",
    layers: str | LayerStrategy | LabelledLayerStrategy = "phase_transition",
    scorer: str | Scorer = "cosine",
    max_length: int = 1024,
    **settings: Any,
) -> Trace:
    """Traces a loaded model's answers to the training samples that caused them.

    Args:
        model, tokenizer: a causal language model of Transformers and its tokenizer. The model's parameters are frozen
            during the run.
        train, queries: samples as dictionaries with ``prompt`` and ``response`` (or ``messages``), and optionally
            ``label`` and ``spans``; or a pandas table with these columns. A query without a response is answered by the
            model itself.
        out: the run folder, to which the samples are copied; None: a temporary one, removed with the result.
        extractor, layers, scorer: a word of ``configs/``, or an object of your own.
        max_length: tokens; longer samples are cut at the end of their response.
        settings: any other key of ``configs/attribute.yaml``, dots as double underscores: ``top_k=10``,
            ``trainer__devices=2``, ``tokens__hits=5``.

    Returns:
        The result; ``print`` it, or use ``.hits(query)``, ``.tokens(query, row)``, ``.to_pandas()``.

    Raises:
        UsageError: a setting or a sample list that cannot be used, in one sentence.
    """
    samples = {"train": as_dictionaries(train), "queries": as_dictionaries(queries)}
    folder = mkdtemp(prefix="rept-") if out is None else str(out)
    with ExitStack() as undo:
        if out is None:
            undo.callback(rmtree, folder, ignore_errors=True)
        parts = {"extractor": extractor, "layers": layers, "scorer": scorer}
        config = _composed(parts, {"datamodule__max_length": max_length, "out": folder} | settings)
        given = Given(
            loaded=(model, tokenizer),
            datamodule=build(config.datamodule, AttributionDataModule, **samples),
            extractor=None if isinstance(extractor, str) else extractor,
            strategy=None if isinstance(layers, str) else layers,
            scorer=None if isinstance(scorer, str) else scorer,
        )
        with frozen(model):
            _attribute(config, given, {} if out is None else samples)
        undo.pop_all()
    return Trace(folder, temporary=out is None)


def _composed(parts: dict[str, Any], settings: dict[str, Any]) -> AttributeConfig:
    """The configuration of `trace`; an object is recorded by its class and settings."""
    words = {name: part for name, part in (settings | parts).items() if isinstance(part, str) and is_group(name)}
    values = {name.replace("__", "."): value for name, value in settings.items() if name not in words}
    chosen = [f"{name}={word}" for name, word in ({"datamodule": "in_memory"} | words).items()]
    config = compose(AttributeConfig, chosen, given={"report": False} | values)
    kinds: dict[str, type] = {"extractor": Extractor, "layers": LayerStrategy, "scorer": Scorer}
    for group, part in parts.items():
        if not isinstance(part, str):
            if not isinstance(part, kinds[group]) or isinstance(part, type):
                raise UsageError(
                    f"Expected {group} to be a word of configs/{group} or an object of {kinds[group].__name__}, but "
                    f"got {part!r}; a setting of a word is given as {group}__NAME=value."
                )
            setattr(config, group, as_node(part) if group != "extractor" else as_description(part))
    return config


def _attribute(config: AttributeConfig, given: Given, copied: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Runs the job, and copies samples into the run folder, where `rept score` reads their texts and labels.

    Without samples to copy, the folder is a temporary one of this process.
    """
    trainer, folder = attribution_trainer(config), RunFolder(config.out)
    if not copied and trainer.world_size > 1:
        raise UsageError(
            f"Expected out= to name a folder that all {trainer.world_size} processes share, but got none: each "
            "would make a temporary one of its own."
        )
    attribute(config, given, trainer=trainer, show_result=False)
    for name, rows in copied.items() if trainer.is_global_zero else ():
        folder.samples.mkdir(exist_ok=True)
        write_jsonl(folder.samples / f"{name}.jsonl", map(_as_json, rows))


def _as_json(row: Mapping[str, Any]) -> Any:
    """A row as JSON can hold it; anything else, such as an object or a NaN, becomes text."""
    return json.loads(json.dumps(row, default=str), parse_constant=str)


def attribute(
    config: AttributeConfig, given: Given | None = None, *, trainer: Trainer | None = None, show_result: bool = True
) -> Trace:
    """Runs the job that ``config`` describes, and prints the result's tables at the end if ``show_result``.

    Raises:
        UsageError: a user's mistake, raised before anything slow starts wherever that is possible.
    """
    folder, stop = RunFolder(config.out), StopBetweenBatches()
    trainer = trainer or attribution_trainer(config)
    callbacks_of(trainer).append(stop)
    with stop.handlers(), ExitStack() as lock:
        with supervised(trainer, stop, config.max_wait):
            lock.enter_context(folder.lock())
            run_job(prepare(config, given, trainer=trainer))
        result = Trace(folder.path)
        if trainer.is_global_zero and config.report:
            write_report(result)
    if trainer.is_global_zero and show_result:
        show_trace(result)
        console.print()
        page = " Open report.html to look at it." if config.report else ""
        say(f"All results are in {folder.path}.{page}")
    return result


def run_job(job: Job) -> None:
    """Runs all stages of a job. A stage is skipped if its result is already in the folder and still valid."""
    config, folder = job.config, job.folder
    known, marks = folder.read_provenance().get("fingerprints", {}), stages.initial_fingerprints(job)
    check_fingerprints(known, marks, str(folder.path))
    folder.update_provenance(
        **environment(config.seed, job.trainer.world_size),
        rendered=rendered_row(job.datamodule),
        comparable=job.extractor.comparable,
        symmetric=job.extractor.symmetric,
    )
    if "max_new_tokens" in marks:  # the answers that follow depend on what is known by now
        folder.update_provenance(fingerprints=known | marks)
    stages.set_up(job)
    with folder.stage("answers"):
        stages.answer_queries(job)
    with folder.stage("layers"):
        choice = stages.select_layers(job)
    layers = choice["layers"]
    marks |= {"answers": text_digest(str(sorted(job.datamodule.answers.items()))), "layers": list(layers)}
    check_fingerprints(known, marks, str(folder.path))
    if job.learns and not all(stages.is_complete(job, side) for side in SIDES):
        with folder.stage("fit extractor", keep=True):
            stages.fit_extractor(job)
    write_json(folder.layers, choice)
    folder.write_config(config)
    folder.update_provenance(fingerprints=marks)
    module = AttributionModule(job.model, job.extractor, layers)
    for side in SIDES:
        with folder.stage(f"extract {side}", keep=stages.is_complete(job, side)):
            stages.extract(job, module, side, text_digest(str(marks)))
    stages.report_numerical_problems(job, module)
    with folder.stage("rank"):
        device = job.trainer.strategy.root_device
        hits = Scoring(folder, folder, config, job.datamodule, job.scorer, device).run()
    if config.tokens.hits and isinstance(job.extractor, ReadsAllPositions):
        layer = choose_layer(config.tokens.layer, layers, len(Architecture.of(job.model)))
        with folder.stage("tokens"):
            best = {query: rows[: config.tokens.hits] for query, rows in hits.items()}
            write_tokens(job, job.extractor, best, layer)
    barrier(config.max_wait)  # rank 0 writes what the callers on all ranks read next
