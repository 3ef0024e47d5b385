"""python -m rept approximate: hits in a large store through an index that FAISS searches."""

from __future__ import annotations

CONFIG = "attribute"
USAGE = """
python -m rept approximate RUN [scorer=cosine|inner_product] [top_k=N] out=DIR

Finds each stored query's best training rows through an approximate index (extra `faiss`), and writes them into
DIR/results.jsonl. The index is built where there is none, from the whole store, and kept in RUN. Measures and opponents
need the whole ranking, so there are none here: python -m rept score ranks exactly. docs/scale.md says when it pays.

  python -m rept approximate runs/demo top_k=10 out=runs/demo-approximate
"""


def run(arguments: list[str]) -> None:
    import time

    from rept.approximate import ApproximateIndex
    from rept.config import build, compose
    from rept.console import say
    from rept.errors import UsageError
    from rept.progress import progress
    from rept.ranking import Ranking
    from rept.run_folder import RunFolder
    from rept.scoring import Scoring
    from rept.stages import known_answers
    from rept.topk import Hits

    folders = [argument for argument in arguments if "=" not in argument]
    if len(folders) != 1:
        raise UsageError(f"Expected one run folder, as in {USAGE.splitlines()[-1].strip()}, but got {len(folders)}.")
    source = RunFolder(folders[0])
    base = source.open_existing()
    config = compose("attribute", [argument for argument in arguments if "=" in argument], base=base)
    if config.out == base.out:
        raise UsageError("Expected out=DIR for the approximate hits, so that the run keeps its exact ones.")
    out, datamodule = RunFolder(config.out), build(config.datamodule)
    datamodule.answers.update(known_answers(source))
    scoring = Scoring(source, out, config, datamodule, build(config.scorer))
    asked = scoring.query.read(scoring.queries, scoring.query.keys)
    index = ApproximateIndex(source.path / "approximate.faiss", scoring.train, scoring.scorer, scoring.query.keys)
    if not index.ready():
        with progress("Building the index", total=len(scoring.train.attributed), unit="rows") as advance:
            made = index.build(asked, config.top_k, on_block=advance)
        say(
            f"The index holds {made.bytes / 1e6:,.0f} MB; looking into {made.looked_into:,} of its {made.lists:,} "
            f"lists finds {made.recall:.1%} of the best {made.k}."
        )
    start = time.perf_counter()
    hits = index.search(asked, config.top_k)
    say(f"{len(hits.row):,} queries were searched in {time.perf_counter() - start:.2f} s.")
    with out.lock():
        out.copy_description(source)
        out.write_config(config)
        scoring.write(Ranking(hits, Hits(hits.row[:, :0], hits.score[:, :0])), None, out.results)
    say(f"The hits are in {out.results}.")
