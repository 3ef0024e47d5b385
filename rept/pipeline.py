"""The whole job as one call: `trace` for loaded objects, `attribute` for a configuration, `score` for an old run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from lightning import Trainer, seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from rept import finetune, fingerprint, provenance, references, stages
from rept.architecture import Architecture
from rept.attribution import AttributionModule
from rept.budget import settle_budget
from rept.config import TARGET, build, compose
from rept.console import console, say, show
from rept.errors import UsageError
from rept.models import load_model, load_tokenizer
from rept.placement import check_placement, claim_device
from rept.quiet import quiet
from rept.ranks import end_together, meet
from rept.report.page import write_report
from rept.results import Trace
from rept.run_folder import RunFolder, write_json
from rept.scoring import Scoring
from rept.signature import Side
from rept.stages import Job
from rept.stopping import StopBetweenBatches
from rept.store import AttributionStore
from rept.token_scores import write_tokens
from rept.tokens import check_form, choose_layer


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
    parts = {"extractor": extractor, "layers": layers, "scorer": scorer}
    words = [f"{group}={part}" for group, part in parts.items() if isinstance(part, str)]
    values = [f"{name.replace('__', '.')}={value}" for name, value in settings.items()]
    fixed = ["datamodule=in_memory", f"datamodule.max_length={max_length}", f"out={folder}"]
    config = compose("attribute", [*fixed, "report=false", *words, *values])
    given = {group: part for group, part in parts.items() if not isinstance(part, str)}
    for group, part in given.items():
        config[group] = {TARGET: f"{type(part).__module__}.{type(part).__qualname__}"}
    datamodule = build(config.datamodule, train=train, queries=queries)
    was_frozen = {name: p.requires_grad for name, p in model.named_parameters()}
    was_training = model.training
    model.requires_grad_(False).eval()
    try:
        given["selector"] = given.pop("layers", None)
        result = attribute(config, model=model, tokenizer=tokenizer, datamodule=datamodule, show_result=False, **given)
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(was_frozen[name])
        model.train(was_training)
    return Trace(result.folder.path, temporary=out is None)


def attribute(
    config: DictConfig,
    *,
    model: Any = None,
    tokenizer: Any = None,
    datamodule: Any = None,
    extractor: Any = None,
    selector: Any = None,
    scorer: Any = None,
    show_result: bool = True,
) -> Trace:
    """Runs the job that ``config`` describes; objects that are given take the place of what it would build.

    Raises:
        UsageError: a user's mistake, told before anything long has run wherever that is possible.
    """
    given = {"model": model, "tokenizer": tokenizer, "datamodule": datamodule}
    given |= {"extractor": extractor, "selector": selector, "scorer": scorer}
    folder, stop = RunFolder(config.out), StopBetweenBatches()
    with folder.lock(), stop.handlers():
        job = prepare(config, **given)
        job.trainer.callbacks.append(stop)
        with end_together(job.trainer, folder.path, stop, config.max_wait):
            run(job)
    result = Trace(folder.path)
    if job.trainer.is_global_zero:
        if config.report:
            write_report(result)
        if show_result:
            show(result)
            console.print()
            page = " Open report.html to look at it." if config.report else ""
            say(f"All of it is in {folder.path}.{page}")
    return result


def prepare(
    config: DictConfig,
    *,
    model: Any = None,
    tokenizer: Any = None,
    datamodule: Any = None,
    extractor: Any = None,
    selector: Any = None,
    scorer: Any = None,
    make_model: bool = True,
    sides: Sequence[Side] = ("train", "query"),
) -> Job:
    """The collaborators of a run; those that are given are not built. What is cheap to check is checked first."""
    quiet()
    seed_everything(config.seed, verbose=False)
    datamodule = datamodule or build(config.datamodule)
    extractor, scorer = extractor or build(config.extractor), scorer or build(config.scorer)
    selector = selector or build(config.layers)
    check_fields(extractor, scorer)
    check_numbers(config)
    check_form(config.tokens.form)
    trainer = build_trainer(config)
    check_placement(trainer, config.model)
    for side in sides:
        if not len(datamodule.source(side)):  # what is wrong with the data is told before the model is loaded
            raise UsageError(f"Expected at least one {side} row, but the data set is empty.")
    if model is None:
        claim_device(trainer)
        path = ensure_model(config, datamodule, make_model)
        tokenizer, model = load_tokenizer(path, config.model.adapter), load_configured(config, path)
    datamodule.attach(tokenizer)
    if hasattr(extractor, "attach"):
        extractor.attach(model, tokenizer)
    return Job(config, RunFolder(config.out), model, tokenizer, datamodule, extractor, scorer, selector, trainer)


def run(job: Job) -> None:
    """All stages of a job, each skipped where its result is already in the folder and still fits."""
    config, folder = job.config, job.folder
    known, marks = folder.description().get("fingerprints", {}), stages.given(job)
    fingerprint.check(known, marks, str(folder.path))
    folder.describe(**provenance.environment(config.seed, job.trainer.world_size))
    stages.set_up(job)
    with folder.stage("answers"):
        stages.answer_queries(job)
    with folder.stage("layers"):
        choice = stages.select_layers(job)
    layers = choice["layers"]
    settle_budget(job, layers)
    marks |= stages.chosen(job, layers)
    fingerprint.check(known, marks, str(folder.path))
    marks = fingerprint.as_begun(known, marks)
    write_json(folder.layers, choice)
    folder.write_config(config)
    folder.describe(fingerprints=marks)
    if getattr(job.extractor, "fit_rows", 0) != 0:
        with folder.stage("fit extractor", keep=True):
            stages.fit_extractor(job)
    module = AttributionModule(job.model, job.extractor, layers)
    for side in ("query", "train"):
        stored = not config.store.repair and AttributionStore.finished(folder.store, side)
        with folder.stage(f"extract {side}", keep=stored):
            stages.extract(job, module, side, fingerprint.digest(str(marks)))
    stages.tell_trouble(job, module)
    with folder.stage("rank"):
        device = job.trainer.strategy.root_device
        hits = Scoring(folder, folder, config, job.datamodule, job.scorer, device).run()
    if config.tokens.hits and hasattr(job.extractor, "tokens"):
        layer = choose_layer(config.tokens.layer, layers, len(Architecture.of(job.model)))
        with folder.stage("tokens"):
            best = {query: rows[: config.tokens.hits] for query, rows in hits.items()}
            write_tokens(job, best, layer)
    meet(config.max_wait)  # rank 0 writes what every rank's caller reads next


def check_numbers(config: DictConfig) -> None:
    """Raises UsageError where a count is below its least, or a setting of the calibration is out of its range."""
    for key, least in (("top_k", 1), ("bottom_k", 0), ("max_new_tokens", 1), ("tokens.hits", 0)):
        value = OmegaConf.select(config, key)
        if value < least:
            raise UsageError(f"Expected {key} to be at least {least}, but got {value}.")
    if not 0 < config.max_wait < math.inf:
        raise UsageError(f"Expected max_wait to be a number of seconds above 0, but got {config.max_wait}.")
    references.check(config)


def check_fields(extractor: Any, scorer: Any) -> None:
    """Raises UsageError where the scorer reads fields that the extractor does not give."""
    lacking = [field for field in scorer.needs if field not in extractor.fields]
    if lacking:
        raise UsageError(
            f"{type(scorer).__name__} reads {', '.join(lacking)}, but {type(extractor).__name__} gives only "
            f"{', '.join(extractor.fields)}: choose another scorer, or other extractor.fields."
        )


def build_trainer(config: DictConfig) -> Trainer:
    """Lightning's trainer as configured, with what prediction with gradients needs."""
    try:
        return build(
            config.trainer,
            inference_mode=False,  # gradients are read
            use_distributed_sampler=False,  # the batch plan deals out batches itself
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except (MisconfigurationException, ValueError) as error:
        raise UsageError(f"trainer: {str(error).splitlines()[0]}") from None


def ensure_model(config: DictConfig, datamodule: Any, make: bool = True) -> str:
    """The path of the model: the configured one, or the one that goes with embedded data, made if it is not there."""
    if config.model.path:
        return config.model.path
    if datamodule.default_model is None:
        raise UsageError("Expected model.path to name the model's folder or hub id, but it is not set.")
    if not (Path(datamodule.default_model) / "config.json").is_file():
        if not make:
            raise UsageError(f"There is no model in {datamodule.default_model} yet; run without --dry-run to make it.")
        say(f"There is no model in {datamodule.default_model} yet: it is trained on the embedded data first.")
        finetune.main(compose("train", [f"out={datamodule.default_model}"]))
    return datamodule.default_model


def load_configured(config: DictConfig, path: str) -> Any:
    """The model of ``config.model``, with its parts named where structure does not tell them."""
    options = OmegaConf.to_container(config.model)
    names = {part: options.pop(part) for part in ("blocks", "final_norm", "attention", "mlp")}
    model = load_model(**options | {"path": path})
    Architecture.of(model, **names)
    return model


def score(arguments: Sequence[str]) -> Trace:
    """Ranks the stored signatures of a run again: ``[RUN, "scorer=...", "out=..."]``, as on the command line.

    Raises:
        UsageError: no run there, or a scorer that needs what is not stored.
    """
    folders = [argument for argument in arguments if "=" not in argument]
    if len(folders) != 1:
        raise UsageError(f"Expected one run folder, as in python -m rept score runs/demo, but got {len(folders)}.")
    quiet()
    source = RunFolder(folders[0])
    base = source.open_existing()
    config = compose("attribute", [argument for argument in arguments if "=" in argument], base=base)
    out = RunFolder(config.out if config.out != base.out else source.path)
    result = rescore(source, out, config)
    show(result)
    return result


def rescore(source: RunFolder, out: RunFolder, config: DictConfig) -> Trace:
    """Ranks the stored signatures of ``source`` by ``config.scorer``, into ``out``."""
    scorer, datamodule = build(config.scorer), build(config.datamodule)
    datamodule.answers.update(stages.known_answers(source))
    with out.lock():
        if out.path != source.path:
            out.copy_description(source)
        out.write_config(config)
        with out.stage("rank"):
            Scoring(source, out, config, datamodule, scorer).run()
    return Trace(out.path)
