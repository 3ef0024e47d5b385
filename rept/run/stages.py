"""The stages of a run that need the model: answers, layers, signatures. Token scores are in `rept.run.token_stage`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
import torch

from rept.data.samples import Sample, SampleSource
from rept.distributed.collectives import any_rank, barrier, gathered
from rept.errors import UsageError
from rept.model.generation import equal_lengths, greedy_answers
from rept.model.placement import place
from rept.run.checks import check_behaviours
from rept.run.job import Job
from rept.run.sample_rows import choose_layers, sample_rows, training_batches, training_behaviour
from rept.signatures import fingerprint
from rept.signatures.layer_strategy import LabelledLayerStrategy
from rept.signatures.module import AttributionModule
from rept.store.reader import AttributionStore
from rept.store.writer import StoreWriter
from rept.training.trainer import callbacks_of
from rept.types import Side, Status
from rept.utils.console import say
from rept.utils.digests import text_digest
from rept.utils.json_files import read_json, write_jsonl
from rept.utils.progress import progress
from rept.utils.progress_callback import ShowProgress
from rept.utils.text import counted, format_count

SIDE_NAMES: dict[Side, str] = {"train": "training rows", "query": "queries"}
_ATTRIBUTED = [status.reason for status in Status if status.attributed]


def set_up(job: Job) -> None:
    """Moves the model to its device; several ranks are started, if they are not yet, and wait for one another."""
    if job.trainer.world_size == 1:
        place(job.model, job.trainer)
        return
    rows = len(job.datamodule.source("query"))
    nothing = job.datamodule.loader("query", done=np.ones(rows, dtype=bool))
    job.trainer.predict(AttributionModule(job.model, job.extractor, []), nothing, return_predictions=False)
    barrier(job.config.max_wait)


def answer_queries(job: Job) -> None:
    """Writes queries.jsonl: every query with its status, and the model's greedy answer if it has no response.

    Raises UsageError, before the training rows are read, if no query can be attributed, or the behaviours file names
    one that was set aside.
    """
    source, answers = job.datamodule.source("query"), job.datamodule.answers
    if job.trainer.strategy.broadcast(job.folder.queries.is_file()):
        answers.update(job.folder.known_answers())
    else:
        encoded = {
            i: job.datamodule.encoder.prompt(sample) for i, sample in _without_response(source) if i not in answers
        }
        prompts = {i: ids for i, ids in encoded.items() if not isinstance(ids, Status)}
        if prompts:
            answers.update(_generated(job, prompts))
    if empty := sum(not answer for answer in answers.values()):
        asked = format_count(len(answers), "query")
        say(f"{empty:,} of {asked} without a response got an empty answer from the model; set aside.")
    lines = list(_query_lines(job))
    attributed = [line["query"] for line in lines if line["status"] in _ATTRIBUTED]
    if not attributed:
        found = Counter(line["status"] for line in lines)
        raise UsageError(
            f"Expected a query that can be attributed, but got: {counted(found)}. Give the queries the responses to "
            "trace, or check whether the model answers in its chat template."
        )
    write_jsonl(job.folder.queries, lines)
    check_behaviours(job.config, attributed)


def _generated(job: Job, prompts: dict[int, list[int]]) -> dict[int, str]:
    """The model's answers by query. Each rank answers its share of the batches, which are the same for any number."""
    queries, texts = list(prompts), list(prompts.values())
    rank, ranks = (0, 1) if job.in_step else (job.trainer.global_rank, job.trainer.world_size)
    own = [i for number, batch in enumerate(equal_lengths(texts)) if number % ranks == rank for i in batch]
    with progress("Answering queries", total=len(texts), unit="queries") as advance:
        answers = greedy_answers(
            job.model,
            job.tokenizer,
            [texts[i] for i in own],
            job.config.max_new_tokens,
            on_batch=lambda count: advance(count * ranks),
        )
    share = {queries[i]: answer for i, answer in zip(own, answers, strict=True)}
    return {query: answer for part in gathered(share) for query, answer in part.items()}


def _without_response(source: SampleSource) -> Iterator[tuple[int, Sample]]:
    for i in range(len(source)):
        sample = source[i]
        if not isinstance(sample, Status) and sample.response is None:
            yield i, sample


def _query_lines(job: Job) -> Iterator[dict[str, Any]]:
    for i in range(len(job.datamodule.source("query"))):
        sample = job.datamodule.sample("query", i)
        line = {"query": i, "prompt": "", "response": "", "generated": i in job.datamodule.answers, "label": None}
        if isinstance(sample, Sample):
            line |= {"prompt": sample.prompt, "response": sample.response or "", "label": sample.label}
        yield line | {"status": job.datamodule.status("query", i).reason}


def select_layers(job: Job) -> dict[str, Any]:
    """Returns the content of layers.json: the strategy, its settings and its choice."""
    strategy = job.config.layers | {"settings": fingerprint.of_settings(job.strategy), "seed": job.config.seed}
    if isinstance(job.strategy, LabelledLayerStrategy):
        rows = range(len(job.datamodule.source("train")))
        strategy["labels"] = text_digest(*(str(training_behaviour(job, row)) for row in rows))
    if job.trainer.strategy.broadcast(job.folder.layers.is_file()):
        known = read_json(job.folder.layers)
        if known["strategy"] == strategy:
            say(f"Layer {', '.join(map(str, known['layers']))}: chosen before, reused.")
            return known
    choice, probe_rows = job.trainer.strategy.broadcast(choose_layers(job))
    return {"strategy": strategy, "probe_rows": probe_rows} | asdict(choice)


def initial_fingerprints(job: Job) -> dict[str, Any]:
    """What the signatures depend on, by name, as far as it is known before the model runs and is split.

    "weights" covers the adapter's tensors and "tokenizer" the template; both are listed separately too, so that a
    difference is reported by its name.
    """
    generates = next(_without_response(job.datamodule.source("query")), None) is not None
    return {
        "weights": fingerprint.of_weights(job.model),
        "adapter": fingerprint.of_adapter(job.model),
        "tokenizer": fingerprint.of_tokenizer(job.tokenizer),
        "template": text_digest(str(job.tokenizer.chat_template)),
        "training data": job.datamodule.digest("train"),
        "query data": job.datamodule.digest("query"),
        "extractor": str(job.config.extractor),
        "extractor settings": fingerprint.of_settings(job.extractor),
        **job.extractor.content(),
        "max_length": job.datamodule.max_length,
        "window": job.datamodule.window,
        "tokens_per_batch": job.datamodule.tokens_per_batch,
        "store dtype": job.config.store.dtype,
        "model dtype": str(job.model.dtype),
        **({"max_new_tokens": job.config.max_new_tokens} if generates else {}),
        **({"seed": job.config.seed} if job.learns else {}),  # of the rows that it learns from
    }


def is_complete(job: Job, side: Side) -> bool:
    """Whether all signatures of a side are stored and need no check for damage."""
    return not job.config.store.repair and AttributionStore.finished(job.folder.store, side)


def fit_extractor(job: Job) -> None:
    """Fits an extractor that learns, on a sample of the training rows."""
    wanted = job.extractor.fit_rows
    rows = sample_rows(job, len(job.datamodule.source("train")) if wanted is None else wanted)
    say(f"The extractor learns from {len(rows):,} training rows.")
    job.extractor.fit(job.model, list(training_batches(job, rows)))


def extract(job: Job, module: AttributionModule, side: Side, mark: str) -> None:
    """Stores the signatures of one side. Rows in complete shards are not computed again."""
    name, total = SIDE_NAMES[side], len(job.datamodule.source(side))
    trainer, store = job.trainer, job.folder.store
    if job.config.store.repair and trainer.is_global_zero:
        removed = AttributionStore.repair(store, side, mark, total)
        if removed:
            say(f"Removed {len(removed)} damaged shards of the {name}; their rows are computed again.")
    barrier(job.config.max_wait)  # so that every rank sees the repaired store
    done = AttributionStore.stored_rows(store, side, total, mark, together=True)
    stored = 0 if done is None else int(done.sum())
    if stored:
        say(f"Signatures of {stored:,} of {total:,} {name}: stored before, reused.")
    if stored < total:
        writer = StoreWriter(store, mark, job.config.store.dtype, job.config.store.shard_rows)
        callbacks_of(trainer).extend([writer, ShowProgress(f"Signatures of the {name}", total - stored)])
        in_step = partial(any_rank, seconds=job.config.max_wait) if job.in_step else None
        loader = job.datamodule.loader(
            side, done=done, in_step=in_step, rank=trainer.global_rank, world_size=trainer.world_size
        )
        trainer.predict(module, loader, return_predictions=False)
        del callbacks_of(trainer)[-2:]
    barrier(job.config.max_wait)
    if not AttributionStore.finished(store, side):
        AttributionStore.finish(store, side, total, together=True)
    barrier(job.config.max_wait)


def report_numerical_problems(job: Job, module: AttributionModule) -> None:
    """Prints halved batches and underflowed gradients of all ranks, and adds them up in provenance.json."""
    counts = torch.tensor([module.halvings, module.underflowed], device=job.trainer.strategy.root_device)
    halvings, underflowed = job.trainer.strategy.reduce(counts, reduce_op="sum").tolist()
    if halvings:
        batches = format_count(halvings, "batch")
        say(f"{batches} did not fit on the device and had to be halved: lower datamodule.tokens_per_batch.")
    if underflowed:
        rows = format_count(underflowed, "row")
        say(
            f"The gradient of {rows} is exactly 0, below what {module.model.dtype} holds: set model.dtype=float32 (or "
            "bfloat16) to attribute by gradients too."
        )
    before = job.folder.read_provenance()
    job.folder.update_provenance(
        halved_batches=before.get("halved_batches", 0) + halvings,
        underflowed_rows=before.get("underflowed_rows", 0) + underflowed,
    )
