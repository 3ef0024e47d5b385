"""python -m rept approximate: hits in a large store through an index that FAISS searches."""

from __future__ import annotations

from rept.config.schema import APPROXIMATE_RANKING

CONFIG = "attribute"
KEYS = APPROXIMATE_RANKING
USAGE = """
python -m rept approximate RUN [scorer=cosine|inner_product] [top_k=N] out=DIR

Finds each stored query's best training rows through an approximate index (extra `faiss`), and writes them to
DIR/results.jsonl. The index is built from the whole store, unless RUN has one for as many hits, and kept in RUN.
Measures and opponents need the whole ranking, so there are none here: python -m rept score ranks exactly. docs/scale.md
says when an index is worth it.

  python -m rept approximate runs/demo top_k=10 out=runs/demo-approximate
"""


def run(arguments: list[str]) -> None:
    import time

    from rept.config.plug_ins import build
    from rept.ranking.faiss_index import ApproximateIndex
    from rept.ranking.rank import Ranking
    from rept.ranking.scorer import Scorer
    from rept.ranking.topk import Hits
    from rept.results.run_folder import RunFolder
    from rept.run.checks import check_numbers
    from rept.run.rank_stage import Scoring
    from rept.run.rescore import reopen, stored_data
    from rept.utils.console import say
    from rept.utils.progress import progress
    from rept.utils.text import format_count

    source, config = reopen(arguments, APPROXIMATE_RANKING)
    check_numbers(config)
    out = RunFolder(config.out)
    scoring = Scoring(source, out, config, stored_data(source, config), build(config.scorer, Scorer))
    queries = scoring.query.read(scoring.queries, scoring.query.keys)
    index = ApproximateIndex(source.approximate, scoring.train, scoring.scorer, scoring.query.keys)
    if not index.ready(config.top_k):
        rows = len(scoring.train.attributed)
        with source.lock(), progress("Building the index", total=rows, unit="rows") as advance:
            made = index.build(queries, config.top_k, on_block=advance)
        say(
            f"The index has {made.bytes / 1e6:,.0f} MB; searching {made.searched_lists:,} of its {made.lists:,} "
            f"lists finds {made.recall:.1%} of the best {made.k}."
        )
    start = time.perf_counter()
    hits = index.search(queries, config.top_k)
    say(f"Searched {format_count(len(hits.row), 'query')} in {time.perf_counter() - start:.2f} s.")
    with out.lock():
        scoring.write(Ranking(hits, Hits(hits.row[:, :0], hits.score[:, :0])))
        scoring.finish({})
    say(f"The hits are in {out.results}.")
