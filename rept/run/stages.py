"""The stages of a run that need the model: answers, layers, signatures (tokens: `rept.run.token_stage`). Each leaves its
file behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf

from rept.distributed.collectives import any_rank, joining, meet
from rept.distributed.ranks import started_outside
from rept.model.generation import greedy_answers
from rept.model.placement import place
from rept.results.run_folder import RunFolder
from rept.run.job import Job
from rept.run.sample_rows import choose_layers, probe_rows, training_batches
from rept.signatures import fingerprint
from rept.signatures.module import AttributionModule
from rept.store.reader import AttributionStore
from rept.store.scan import shard_paths
from rept.store.writer import StoreWriter
from rept.types import Side, Status
from rept.utils.console import say
from rept.utils.digests import text_digest
from rept.utils.json_files import read_json, read_jsonl, write_jsonl
from rept.utils.progress import ShowProgress, progress


def set_up(job: Job) -> None:
    """Brings the model to its device; and brings the ranks together, where they must meet before they extract."""
    if _meet_first(job):
        rows = len(job.datamodule.source("query"))
        nothing = job.datamodule.loader("query", done=np.ones(rows, dtype=bool))
        with joining(job.config.max_wait):
            job.trainer.predict(AttributionModule(job.model, job.extractor, []), nothing, return_predictions=False)
    else:
        place(job.model, job.trainer)


def _meet_first(job: Job) -> bool:
    """Ranks that each hold a share of the model, that share the reading of the shards there are (or must wait for their repair); and those that torchrun or SLURM has started,
    which are there in any case."""
    if job.in_step:
        return True
    stored = any(shard_paths(job.folder.store, side) for side in ("train", "query"))
    return job.trainer.world_size > 1 and (job.config.store.repair or stored or started_outside(job.trainer))


def answer_queries(job: Job) -> None:
    """queries.jsonl: every query with its status, and the model's own greedy answer where the data bring none."""
    source, together = job.datamodule.source("query"), job.trainer.strategy
    if together.broadcast(job.folder.queries.is_file()):
        job.datamodule.answers.update(known_answers(job.folder))
    else:
        asked = (i for i in _unanswered(source) if i not in job.datamodule.answers)
        prompts = {i: job.datamodule.encoder.prompt(source[i]) for i in asked}
        prompts = {i: ids for i, ids in prompts.items() if not isinstance(ids, Status)}
        if prompts:
            with progress("Asking the model", total=len(prompts), unit="queries") as advance:
                answers = greedy_answers(
                    job.model, job.tokenizer, list(prompts.values()), job.config.max_new_tokens, on_batch=advance
                )
            job.datamodule.answers.update(zip(prompts, together.broadcast(answers), strict=True))
    write_jsonl(job.folder.queries, _query_lines(job))


def _unanswered(source: Any) -> Iterator[int]:
    """The queries that bring no response."""
    for i in range(len(source)):
        sample = source[i]
        if not isinstance(sample, Status) and sample.response is None:
            yield i


def known_answers(folder: RunFolder) -> dict[int, str]:
    """The answers that a run's model gave, by query."""
    return {line["query"]: line["response"] for line in read_jsonl(folder.queries) if line["generated"]}


def _query_lines(job: Job) -> Iterator[dict[str, Any]]:
    source = job.datamodule.source("query")
    for i in range(len(source)):
        sample = source[i]
        if isinstance(sample, Status):
            yield {"query": i, "prompt": "", "response": "", "generated": False, "label": None, "status": sample.reason}
            continue
        generated = i in job.datamodule.answers
        response = job.datamodule.answers[i] if generated else sample.response or ""
        status = job.datamodule.status("query", i)
        yield {
            "query": i,
            "prompt": sample.prompt,
            "response": response,
            "generated": generated,
            "label": sample.label,
            "status": status.reason,
        }


def select_layers(job: Job) -> dict[str, Any]:
    """The strategy's choice on its probe rows of the training data, as layers.json has it."""
    strategy = OmegaConf.to_container(job.config.layers, resolve=True) | {"seed": job.config.seed}
    if job.trainer.strategy.broadcast(job.folder.layers.is_file()):
        known = read_json(job.folder.layers)
        if known["strategy"] == strategy:
            say(f"Layer {', '.join(map(str, known['layers']))}: chosen before, reused.")
            return known
    choice, rows = job.trainer.strategy.broadcast(choose_layers(job))
    return {
        "strategy": strategy,
        "layers": choice.layers,
        "curve": choice.curve,
        "measure": choice.measure,
        "first": choice.first,
        "agreement": choice.agreement,
        "reason": choice.reason,
        "probe_rows": rows,
        "probes": choice.probes,
    }


def given(job: Job) -> dict[str, Any]:
    """What the signatures depend on, by name, as far as it is known before anything is run (and the weights are whole).

    "weights" covers the adapter's tensors and "tokenizer" the template; these stand for themselves too, so that a
    difference is told by its name.
    """
    unanswered = any(True for _ in _unanswered(job.datamodule.source("query")))
    return {
        "weights": fingerprint.of_weights(job.model),
        "adapter": fingerprint.of_adapter(job.model),
        "tokenizer": fingerprint.of_tokenizer(job.tokenizer),
        "template": text_digest(str(job.tokenizer.chat_template)),
        "training data": job.datamodule.digest("train"),
        "query data": job.datamodule.digest("query"),
        "extractor": str(OmegaConf.to_container(job.config.extractor, resolve=True)),
        "extractor settings": fingerprint.of_settings(job.extractor),
        **job.extractor.content(),
        "max_length": job.datamodule.max_length,
        "window": job.datamodule.window,
        "tokens_per_batch": job.datamodule.tokens_per_batch,
        "store dtype": job.config.store.dtype,
        "model dtype": str(job.model.dtype),
        **({"max_new_tokens": job.config.max_new_tokens} if unanswered else {}),
        **({"seed": job.config.seed} if job.learns else {}),  # of the rows that it learns from
    }


def chosen(job: Job, layers: Sequence[int]) -> dict[str, Any]:
    """The rest of it: what the run itself has settled."""
    answers = text_digest(str(sorted(job.datamodule.answers.items())))
    return {"answers": answers, "layers": list(layers)}


def whole(job: Job, side: Side) -> bool:
    """Whether a side's signatures are all stored, and need not be looked through for damage."""
    return not job.config.store.repair and AttributionStore.finished(job.folder.store, side)


def fit_extractor(job: Job) -> None:
    """Lets an extractor learn from drawn training rows."""
    wanted = job.extractor.fit_rows
    rows = probe_rows(job, len(job.datamodule.source("train")) if wanted is None else wanted)
    say(f"The extractor learns from {len(rows):,} training rows.")
    job.extractor.fit(job.model, list(training_batches(job, rows)))


def extract(job: Job, module: AttributionModule, side: Side, mark: str) -> None:
    """The signatures of one side, in the store. Rows in whole shards are not computed again."""
    name = {"train": "training rows", "query": "queries"}[side]
    total = len(job.datamodule.source(side))
    trainer, store = job.trainer, job.folder.store
    if job.config.store.repair and trainer.is_global_zero:
        removed = AttributionStore.repair(store, side, mark, total)
        if removed:
            say(f"Removed {len(removed)} damaged shards of the {name}; their rows are computed again.")
    meet(job.config.max_wait)  # before it is asked what is there
    done = AttributionStore.stored_rows(store, side, total, mark, together=True)
    stored = 0 if done is None else int(done.sum())
    if stored:
        say(f"Signatures of {stored:,} of {total:,} {name}: stored before, reused.")
    if stored < total:
        writer = StoreWriter(store, mark, job.config.store.dtype, job.config.store.shard_rows)
        trainer.callbacks += [writer, ShowProgress(f"Signatures of the {name}", total - stored)]
        in_step = partial(any_rank, seconds=job.config.max_wait) if job.in_step else None
        ranks = {"rank": trainer.global_rank, "world_size": trainer.world_size}
        loader = job.datamodule.loader(side, done=done, in_step=in_step, **ranks)
        trainer.predict(module, loader, return_predictions=False)
        del trainer.callbacks[-2:]
    meet(job.config.max_wait)
    if not AttributionStore.finished(store, side):
        AttributionStore.finish(store, side, total, together=True)
    meet(job.config.max_wait)


def tell_trouble(job: Job, module: AttributionModule) -> None:
    """Says, and adds up in provenance.json, what the user should know about the extraction, on all ranks."""
    counts = torch.tensor([module.halvings, module.underflowed], device=job.trainer.strategy.root_device)
    halvings, underflowed = job.trainer.strategy.reduce(counts, reduce_op="sum").tolist()
    if halvings:
        say(f"{halvings:,} batches did not fit on the device and were cut in two: lower datamodule.tokens_per_batch.")
    if underflowed:
        say(
            f"{underflowed:,} rows have a gradient of exactly 0, below what {module.model.dtype} holds: set "
            "model.dtype=float32 (or bfloat16) to attribute them by their gradients."
        )
    before = job.folder.description()
    job.folder.describe(
        halved_batches=before.get("halved_batches", 0) + halvings,
        underflowed_rows=before.get("underflowed_rows", 0) + underflowed,
    )
