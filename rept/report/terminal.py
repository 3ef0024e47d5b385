"""What a run shows in the terminal: the layer curve, hits, culprit tokens, measures and the count of rows."""

from __future__ import annotations

from collections import Counter

from rich.table import Table
from rich.text import Text

from rept.results.folding import fold
from rept.results.records import TokenScores
from rept.results.shading import Piece, shaded
from rept.results.trace import Trace
from rept.signatures.layer_strategy import ADJACENT_COSINE
from rept.utils.console import console, say
from rept.utils.text import shorten, visible


def show_trace(trace: Trace, queries: int = 3) -> None:
    """The whole summary of a finished run."""
    show_layers(trace)
    show_blocks(trace)
    for query in trace.examples(queries):
        show_hits(trace, query)
        show_tokens(trace, query)
    show_metrics(trace)
    show_calibration(trace)
    show_rows(trace)


def show_layers(trace: Trace) -> None:
    choice = trace.layers
    curve = choice.get("curve")
    if curve:
        measure, first = choice["measure"], choice["first"]
        say(f"{measure.capitalize()}, mean over the probe:")
        table = Table()
        table.add_column("layers")
        table.add_column("", justify="right")
        table.add_column("")
        low, high = min(curve), max(curve)
        for layer, value in enumerate(curve, start=first):
            filled = 1 + round(24 * (value - low) / (high - low)) if high > low else 25
            layers = f"{layer - 1} - {layer}" if measure == ADJACENT_COSINE else str(layer)
            table.add_row(layers, f"{value:.4g}", "█" * filled)
        console.print(table)
    say(f"Layer {', '.join(map(str, choice['layers']))}: {choice['reason']}")
    console.print()


def show_blocks(trace: Trace) -> None:
    """The norms of the two blocks and their share of the score: a drowned gradient is seen here."""
    blocks = trace.provenance.get("blocks")
    if not blocks:
        return
    table = Table(title="Blocks of the signature", title_justify="left")
    for column in ("block", "mean norm, training", "mean norm, queries", "share of the cosine"):
        table.add_column(column, justify="left" if column == "block" else "right", no_wrap=True)
    for name, figures in blocks.items():
        table.add_row(
            name,
            f"{figures['train_norm']:.3g}",
            f"{figures['query_norm']:.3g}",
            f"{figures['share']:.2%}",
        )
    console.print(table)


def show_hits(trace: Trace, query: int, rows: int = 5) -> None:
    """The best hits, near-duplicates told as one: the best of them, and how many (``alike``) it stands for."""
    asked = trace.queries[query]
    console.print()
    label = f" [{visible(asked['label'])}]" if asked["label"] else ""
    say(f"Query {query}{label}: {shorten(asked['prompt'], 90)}")
    say(f"  {'model answered' if asked['generated'] else 'response'}: {shorten(asked['response'], 90)}")
    hits = trace.hits(query)
    alike = Counter(fold(hits))
    best = [hits[position] for position in alike][:rows]  # of each group; a Counter keeps the order of hits
    calibrated = any(hit.flagged is not None for hit in hits)
    if calibrated and not any(hit.flagged for hit in hits):
        say("  no training sample stands out")
    grouped = max(alike.values(), default=1) > 1
    table = Table(expand=True)
    for column in ("rank", "row", *(["alike"] if grouped else []), "score", *(["p"] if calibrated else [])):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("label", no_wrap=True)
    for column in ("prompt", "response"):
        table.add_column(column, no_wrap=True, ratio=1)
    for hit in best:
        same = " (the query itself)" if hit.same_as_query else ""
        table.add_row(
            str(hit.rank),
            str(hit.row),
            *([str(alike[hit.rank - 1])] if grouped else []),
            f"{hit.score:.4f}",
            *([f"{hit.p_value:.2g}{' *' if hit.flagged else '  '}"] if calibrated else []),
            Text(visible(hit.label or "") + same),
            Text(shorten(hit.prompt, 80)),
            Text(shorten(hit.response, 80)),
        )
    console.print(table)


def show_tokens(trace: Trace, query: int) -> None:
    """The best hit's text and the query's, the strongest tokens marked."""
    hits = trace.hits(query)
    try:
        sides = trace.tokens(query, hits[0].row) if hits else {}
    except KeyError:
        return
    for side, title in (("train", f"row {hits[0].row}" if hits else ""), ("query", f"query {query}")):
        if side in sides:
            console.print(Text(f"  culprit tokens in {title}: ") + marked_text(sides[side]))


def marked_text(scored: TokenScores, strongest: int = 6) -> Text:
    """The sample's text, shaded by score where the terminal has colour, its strongest tokens in brackets everywhere."""
    pieces = shaded(scored)
    positive = [i for i, piece in enumerate(pieces) if piece.score > 0 and piece.text.strip() and not piece.special]
    marks = set(sorted(positive, key=lambda i: -pieces[i].score)[:strongest])
    text = Text()
    for i, piece in enumerate(pieces):
        word = visible(piece.text).replace("\n", "⏎")
        text.append(" " * (len(word) - len(word.lstrip(" "))))
        word = word.lstrip(" ")
        text.append(f"[{word}]" if i in marks else word, style=_shade(piece))
    return text


def _shade(piece: Piece) -> str:
    """Black on one of three steps of orange, or of blue for a negative score: told apart by colour-blind people too."""
    if piece.special:
        return "dim"
    step = (abs(piece.level) + 1) // 3  # faint shades stay plain
    hues = ("#fdd0a2", "#fd8d3c", "#e6650d") if piece.level > 0 else ("#c6dbef", "#9ecae1", "#6baed6")
    return f"black on {hues[step - 1]}" if step else ""


def show_metrics(trace: Trace) -> None:
    overall, labels = trace.metrics.get("overall") or {}, trace.metrics.get("labels") or {}
    tokens = trace.metrics.get("tokens") or {}
    console.print()
    if not overall:
        say("No measures: they need labels on queries and training rows.")
        return
    table = Table(title="Measures (a training row counts as found when its label is the query's)", title_justify="left")
    table.add_column("measure")
    for name in ("overall", *labels):
        table.add_column(Text(visible(name)), justify="right")
    for measure in overall:
        cells = [overall[measure], *(labels[name].get(measure) for name in labels)]
        table.add_row(measure, *("" if c is None else str(c) if isinstance(c, int) else f"{c:.3f}" for c in cells))
    for measure, value in tokens.items():
        if measure != "texts":  # their number, which stands in metrics.json and on the page
            table.add_row(f"{measure} (tokens)", f"{value:.3f}", *("" for _ in labels))
    console.print(table)


def show_calibration(trace: Trace) -> None:
    """For how many queries a row stands out, and what the number of references allows."""
    told = trace.metrics.get("calibration")
    if not told:
        return
    some, all_queries = told["stand_out"], told["queries"]
    say(
        f"A training sample stands out (*) for {some:,} of {all_queries:,} queries, at a false discovery rate of "
        f"{told['rate']:.3g}, against {told['references']:,} references: {told['source']}."
    )
    if told["fewest"] > 1:
        say(
            f"With so many references no p-value is below {told['floor']:.2g}, so fewer than {told['fewest']:,} "
            "queries cannot stand out: more references tell more."
        )
    if not told["clean_queries"]:
        say(
            "An ordinary query may stand out as well among rows that are held without their like: trace some clean "
            "queries, and name their run by calibration.references."
        )


def show_rows(trace: Trace) -> None:
    rows = trace.metrics["rows"]
    parts = [f"{rows['read']:,} rows read", f"{rows['attributed']:,} attributed"]
    if rows["cut"]:
        parts.append(f"{rows['cut']:,} of them with the response cut at max_length")
    parts += [f"{count:,} set aside: {reason}" for reason, count in rows["set_aside"].items()]
    say("; ".join(parts) + ".")
