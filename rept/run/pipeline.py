"""The whole job as one call: `trace` for loaded objects, `attribute` for a configuration, `score` for an old run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any

from lightning import Trainer
from omegaconf import DictConfig

from rept.config.compose import TARGET, build, compose, is_group
from rept.distributed.collectives import meet
from rept.distributed.ranks import end_together, over_nodes
from rept.distributed.signals import StopBetweenBatches
from rept.errors import UsageError
from rept.model.architecture import Architecture
from rept.model.placement import own_name
from rept.ranking.token_influence import choose_layer
from rept.report.page import write_report
from rept.report.terminal import show_trace
from rept.results.run_folder import RunFolder
from rept.results.trace import Trace
from rept.run import stages
from rept.run.job import Job
from rept.run.prepare import build_trainer, check_numbers, prepare
from rept.run.rank_stage import Scoring
from rept.run.token_stage import write_tokens
from rept.signatures import fingerprint
from rept.signatures.extractor import ReadsAllPositions
from rept.signatures.module import AttributionModule
from rept.utils import environment
from rept.utils.console import console, say
from rept.utils.digests import text_digest
from rept.utils.json_files import write_json
from rept.utils.library_logging import quiet

# What another ranking of stored signatures may set.
RANKING = ("scorer", "top_k", "bottom_k", "each", "calibration", "max_wait", "out")


def trace(
    model: Any,
    tokenizer: Any,
    train: Sequence[Mapping[str, Any]],
    queries: Sequence[Mapping[str, Any]],
    *,
    out: str | Path | None = None,
    extractor: Any = "residual_stream",
    layers: Any = "phase_transition",
    scorer: Any = "cosine",
    max_length: int = 1024,
    **settings: Any,
) -> Trace:
    """Traces a loaded model's answers to the training samples that caused them.

    Args:
        model, tokenizer: a causal language model of Transformers and its tokenizer. The model's parameters are frozen
            while it runs.
        train, queries: samples as dictionaries with ``prompt`` and ``response`` (or ``messages``), and optionally
            ``label`` and ``spans``. A query without a response is answered by the model itself.
        out: the run folder; None: a temporary one that lives as long as the result.
        extractor, layers, scorer: a word of ``configs/``, or an object of your own.
        max_length: tokens; longer samples are cut at the end of their response.
        settings: any other key of ``configs/attribute.yaml``, dots as double underscores: ``top_k=10``,
            ``trainer__devices=2``, ``tokens__hits=5``.

    Returns:
        The result; ``print`` it, or ask it for ``.hits(query)``, ``.tokens(query, row)``, ``.to_pandas()``.

    Raises:
        UsageError: a setting or a sample list that cannot be used, in one sentence.
    """
    folder = mkdtemp(prefix="rept-") if out is None else str(out)
    with ExitStack() as undo:
        if out is None:
            undo.callback(rmtree, folder, ignore_errors=True)
        parts = {"extractor": extractor, "layers": layers, "scorer": scorer}
        config = _composed(parts, {"datamodule__max_length": max_length, "out": folder} | settings)
        given = {group: part for group, part in parts.items() if not isinstance(part, str)}
        given["strategy"] = given.pop("layers", None)
        trainer = build_trainer(config)
        if out is None and trainer.world_size > 1:
            raise UsageError(
                f"Expected out= to name a folder that all {trainer.world_size} processes share, but got none: each "
                "would make a temporary one of its own."
            )
        datamodule = build(config.datamodule, train=train, queries=queries)
        given |= {"model": model, "tokenizer": tokenizer, "datamodule": datamodule}
        with _frozen(model):
            attribute(config, trainer=trainer, show_result=False, **given)
        undo.pop_all()
    return Trace(folder, temporary=out is None)


def _composed(parts: Mapping[str, Any], settings: Mapping[str, Any]) -> DictConfig:
    """The configuration of `trace`; an object that is given stands in it by the name of its class."""
    words = {name: part for name, part in (settings | parts).items() if isinstance(part, str) and is_group(name)}
    values = {name.replace("__", "."): value for name, value in settings.items() if name not in words}
    chosen = [f"{name}={word}" for name, word in ({"datamodule": "in_memory"} | words).items()]
    config = compose("attribute", chosen, given={"report": False} | values)
    for group, part in parts.items():
        if not isinstance(part, str):
            config[group] = {TARGET: f"{type(part).__module__}.{type(part).__qualname__}"}
    return config


@contextmanager
def _frozen(model: Any) -> Iterator[None]:
    """Its parameters need no gradients, and it is in evaluation mode; afterwards all is as it was."""
    needed = {own_name(name): p.requires_grad for name, p in model.named_parameters()}
    was_training = model.training
    model.requires_grad_(False).eval()
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(needed[own_name(name)])
        model.train(was_training)


def attribute(config: DictConfig, *, trainer: Trainer | None = None, show_result: bool = True, **given: Any) -> Trace:
    """Runs the job that ``config`` describes.

    Args:
        trainer: of `rept.run.prepare.build_trainer`; None: built.
        show_result: print the result's tables at the end.
        given: collaborators that take the place of what it would build, by the names of `rept.run.prepare.prepare`:
            ``model`` with ``tokenizer``, ``datamodule``, ``extractor``, ``strategy``, ``scorer``.

    Raises:
        UsageError: a user's mistake, told before anything long has run wherever that is possible.
    """
    folder, stop = RunFolder(config.out), StopBetweenBatches()
    trainer = trainer or build_trainer(config)
    trainer.callbacks.append(stop)
    with stop.handlers(), over_nodes(trainer, stop, config.max_wait), folder.lock():
        job = prepare(config, trainer=trainer, **given)
        with end_together(trainer, folder.path, stop, config.max_wait):
            run_job(job)
        result = Trace(folder.path)
        if trainer.is_global_zero and config.report:
            write_report(result)
    if trainer.is_global_zero and show_result:
        show_trace(result)
        console.print()
        page = " Open report.html to look at it." if config.report else ""
        say(f"All of it is in {folder.path}.{page}")
    return result


def run_job(job: Job) -> None:
    """All stages of a job, each skipped where its result is already in the folder and still fits."""
    config, folder = job.config, job.folder
    known, marks = folder.description().get("fingerprints", {}), stages.given(job)
    fingerprint.check_fingerprints(known, marks, str(folder.path))
    folder.describe(**environment.environment(config.seed, job.trainer.world_size))
    if "max_new_tokens" in marks:  # from here on answers are kept
        folder.describe(fingerprints=known | marks)
    stages.set_up(job)
    with folder.stage("answers"):
        stages.answer_queries(job)
    with folder.stage("layers"):
        choice = stages.select_layers(job)
    layers = choice["layers"]
    marks |= stages.chosen(job, layers)
    fingerprint.check_fingerprints(known, marks, str(folder.path))
    if job.learns and not all(stages.whole(job, side) for side in ("train", "query")):
        with folder.stage("fit extractor", keep=True):
            stages.fit_extractor(job)
    write_json(folder.layers, choice)
    folder.write_config(config)
    folder.describe(fingerprints=marks)
    module = AttributionModule(job.model, job.extractor, layers)
    for side in ("query", "train"):
        with folder.stage(f"extract {side}", keep=stages.whole(job, side)):
            stages.extract(job, module, side, text_digest(str(marks)))
    stages.tell_trouble(job, module)
    with folder.stage("rank"):
        device = job.trainer.strategy.root_device
        hits = Scoring(folder, folder, config, job.datamodule, job.scorer, device).run()
    if config.tokens.hits and isinstance(job.extractor, ReadsAllPositions):
        layer = choose_layer(config.tokens.layer, layers, len(Architecture.of(job.model)))
        with folder.stage("tokens"):
            best = {query: rows[: config.tokens.hits] for query, rows in hits.items()}
            write_tokens(job, best, layer)
    meet(config.max_wait)  # rank 0 writes what every rank's caller reads next


def score(arguments: Sequence[str]) -> Trace:
    """Ranks the stored signatures of a run again: ``[RUN, "scorer=...", "out=..."]``, as on the command line.

    Raises:
        UsageError: no run there, or a scorer that needs what is not stored.
    """
    quiet()
    source, config = reopen(arguments, RANKING)
    result = rescore(source, RunFolder(config.out), config)
    show_trace(result)
    return result


def reopen(arguments: Sequence[str], keys: Sequence[str]) -> tuple[RunFolder, DictConfig]:
    """The run folder that a command line names, and the run's configuration with the other arguments laid over it.

    Args:
        arguments: the folder and ``key=value``; without ``out``, that is the folder itself, wherever it was moved.
        keys: what may be set. All else describes the stored signatures and stays as it is.

    Raises:
        UsageError: no run there, or an argument that sets something else or does not fit.
    """
    folders = [argument for argument in arguments if "=" not in argument]
    if len(folders) != 1:
        raise UsageError(f"Expected one run folder, such as runs/demo, and key=value, but got {len(folders)} folders.")
    laid_over = [argument for argument in arguments if "=" in argument]
    for argument in laid_over:
        if argument.partition("=")[0].partition(".")[0] not in keys:
            raise UsageError(
                f"{argument}: the signatures of a run stay as they are, so only {', '.join(keys)} can be set."
            )
    source = RunFolder(folders[0])
    base = source.open_existing()
    base.out = str(source.path)
    return source, compose("attribute", laid_over, base=base)


def rescore(source: RunFolder, out: RunFolder, config: DictConfig) -> Trace:
    """Ranks the stored signatures of ``source`` by ``config.scorer``, into ``out``."""
    check_numbers(config)
    scorer, datamodule = build(config.scorer), build(config.datamodule)
    datamodule.answers.update(stages.known_answers(source))
    with out.lock():
        if out.path != source.path:
            out.copy_description(source)
        with out.stage("rank"):
            Scoring(source, out, config, datamodule, scorer).run()
    return Trace(out.path)
