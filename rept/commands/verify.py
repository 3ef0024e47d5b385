"""python -m rept verify: compares the fast path with a slow one on the user's model, tokenizer and rows."""

from __future__ import annotations

CONFIG = "attribute"
USAGE = """
python -m rept verify model.path=DIR [datamodule=instructions datamodule.train=PATH] [key=value ...]

Compares the batched path with a slow one-sample loop on your own model, tokenizer and first training rows (a small
built-in set if none are given), and checks the chat template. Prints each check with its error, its tolerance, and what
to do if it fails. Exit code 1 if one fails.

  python -m rept verify model.path=meta-llama/Llama-2-7b-chat-hf model.dtype=bfloat16
"""
ROWS = 12


def run(arguments: list[str]) -> None:
    from rich.text import Text

    from rept.config.compose import compose
    from rept.config.schema import AttributeConfig
    from rept.errors import CheckFailed, UsageError
    from rept.evaluation.verify import checks
    from rept.model.architecture import Architecture
    from rept.model.placement import place
    from rept.run.prepare import prepare
    from rept.utils.console import say, show_table
    from rept.utils.text import format_count

    job = prepare(compose(AttributeConfig, arguments), missing_model="refuse", sides=["train"])
    if job.trainer.world_size > 1:
        raise UsageError("Expected one process to verify in: leave out trainer.devices, num_nodes and strategy.")
    place(job.model, job.trainer)
    depth = len(Architecture.of(job.model))
    layers = sorted({1, max(1, depth // 2), depth})
    total = len(job.datamodule.source("train"))
    rows = [row for row in range(min(total, 10 * ROWS)) if job.datamodule.status("train", row).attributed][:ROWS]
    say(f"The batches hold {job.datamodule.tokens_per_batch:,} tokens (datamodule.tokens_per_batch).")
    found = checks(job.model, job.extractor, job.datamodule, layers, rows)
    verdicts = {True: Text("pass", style="green"), False: Text("FAIL", style="bold red")}
    lines = [
        (one.name, f"{one.error:.2g}", f"{one.tolerance:g}", verdicts[one.passed], "" if one.passed else one.remedy)
        for one in found
    ]
    title = f"{format_count(len(rows), 'row')}, layers {', '.join(map(str, layers))}"
    show_table(title, ("check", "error", "tolerance", "", "what to do"), lines, numbers=slice(1, 3))
    if failed := [check for check in found if not check.passed]:
        raise CheckFailed(f"{len(failed)} of {len(found)} checks failed.")
    say("All checks passed.")
