"""What a run shows in the terminal: the layer curve, hits, culprit tokens, measures and the count of rows."""

from __future__ import annotations

from collections import Counter

from rich.table import Table
from rich.text import Text

from rept.report.overview import behaviours_table, label_problems, measures_table, row_counts, token_notes
from rept.results.records import TokenScores
from rept.results.shading import Piece, shaded
from rept.results.trace import Trace
from rept.signatures.layer_strategy import ADJACENT_COSINE
from rept.utils.console import console, say, show_table
from rept.utils.text import clip, format_count, visible


def show_trace(trace: Trace, queries: int = 3) -> None:
    """Prints the whole summary of a finished run."""
    show_layers(trace)
    show_blocks(trace)
    for query in trace.examples(queries):
        show_hits(trace, query)
        show_tokens(trace, query)
    show_behaviours(trace)
    show_metrics(trace)
    show_calibration(trace)
    for line in token_notes(trace):
        say(line)
    say("; ".join(row_counts(trace)) + ".")


def show_layers(trace: Trace) -> None:
    """Prints the curve that the layer strategy looked at as bars, and its choice."""
    choice = trace.layers
    curve = choice.get("curve")
    if curve:
        measure, first = choice["measure"], choice["first"]
        say(f"{measure.capitalize()}, mean over the probe:")
        low, high = min(curve), max(curve)
        rows = []
        for layer, value in enumerate(curve, start=first):
            filled = 1 + round(24 * (value - low) / (high - low)) if high > low else 25
            layers = f"{layer - 1} - {layer}" if measure == ADJACENT_COSINE else str(layer)
            rows.append((layers, f"{value:.4g}", "█" * filled))
        show_table(None, ("layers", "", ""), rows, numbers=slice(1, 2))
    say(f"Layer {', '.join(map(str, choice['layers']))}: {choice['reason']}")
    console.print()


def show_blocks(trace: Trace) -> None:
    """Prints each block's norms and share of the score, which show whether one block hides the other."""
    blocks = trace.provenance.get("blocks")
    if not blocks:
        return
    columns = ("block", "mean norm, training", "mean norm, queries", "share of the cosine")
    rows = [
        (name, f"{one['train_norm']:.3g}", f"{one['query_norm']:.3g}", f"{one['share']:.2%}")
        for name, one in blocks.items()
    ]
    show_table("Blocks of the signature", columns, rows, no_wrap=len(columns))


def show_hits(trace: Trace, query: int, rows: int = 5) -> None:
    """Prints the best hits: of each group of near-duplicates the first, with the group's size (``alike``)."""
    sample = trace.queries[query]
    console.print()
    label = f" [{visible(sample['label'])}]" if sample["label"] else ""
    say(f"Query {query}{label}: {_line(sample['prompt'], 90)}")
    say(f"  {'model answered' if sample['generated'] else 'response'}: {_line(sample['response'], 90)}")
    if query in trace.not_shown:
        say(f"  this answer does not show {visible(sample['label'])}")
    hits = trace.hits(query)
    alike = Counter(hit.group for hit in hits)
    calibrated = any(hit.flagged is not None for hit in hits)
    if calibrated and not any(hit.flagged for hit in hits):
        say("  no training sample stands out")
    grouped = ("alike",) if len(alike) < len(hits) else ()
    table = Table(expand=True, caption=_explained(bool(grouped), calibrated), caption_justify="left")
    for column in ("rank", "row", *grouped, "score", *(("p",) if calibrated else ())):
        table.add_column(column, justify="right", no_wrap=True)
    for column, ratio in (("label", None), ("prompt", 1), ("response", 1)):
        table.add_column(column, no_wrap=True, ratio=ratio)
    for hit in [hit for hit in hits if hit.group == hit.rank][:rows]:
        size = [str(alike[hit.group])] if grouped else []
        p_value = [f"{hit.p_value:.2g}{' *' if hit.flagged else '  '}"] if calibrated else []
        label = _line(hit.label or "", 24) + (" (the query itself)" if hit.same_as_query else "")
        texts = [Text(label), Text(_line(hit.prompt, 80)), Text(_line(hit.response, 80))]
        table.add_row(str(hit.rank), str(hit.row), *size, f"{hit.score:.4f}", *p_value, *texts)
    console.print(table)


def _explained(grouped: bool, calibrated: bool) -> str | None:
    """What the columns of hits mean that do not explain themselves."""
    alike = "alike: hits with nearly the same text, of which the best is listed"
    p = "p: share of the reference queries with a row that stands out as far as this hit; *: the hit stands out"
    return "; ".join([alike] * grouped + [p] * calibrated) or None


def show_tokens(trace: Trace, query: int) -> None:
    """Prints the best hit's text and the query's, the strongest tokens marked."""
    sides = trace.best_tokens(query)
    for side, name in (("train", "row"), ("query", "query")):
        if side in sides:
            number = sides[side].row if side == "train" else query
            console.print(Text(f"  culprit tokens in {name} {number}: ") + marked_text(sides[side]))


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


def show_behaviours(trace: Trace, most: int = 20) -> None:
    """Prints for each behaviour the rows that its queries together lead to, and measures where labels are known."""
    rows = behaviours_table(trace)
    if not rows:
        return
    console.print()
    measured = any(precision for *_, precision in rows)
    columns = ("behaviour", "queries", "best rows", "rows in all", *(["average precision"] if measured else []))
    shown = [(_line(name, 40), *cells[: len(columns) - 1]) for name, *cells in rows[:most]]
    more = f"; {len(rows) - most} more in behaviours.jsonl" if len(rows) > most else ""
    caption = f"rows in all: at most about a tenth of them do not share the behaviour{more}"
    show_table("Rows found for all queries of a behaviour together", columns, shown, caption=caption)


def show_metrics(trace: Trace) -> None:
    """Prints the table of measures."""
    console.print()
    if measures := measures_table(trace):
        columns, rows = measures
        title = "Measures (a training row counts as found when its label is the query's)"
        shown = [(name, *cells) for name, cells in rows if name != "texts (tokens)"]  # a count, which the page shows
        show_table(title, ("measure", *columns), shown)
    else:
        say("No measures: they need labels of behaviours on queries and training rows.")
    for line in label_problems(trace):
        say(line)


def show_calibration(trace: Trace) -> None:
    """Prints for how many queries a row stands out, and what the number of references allows."""
    found = trace.metrics.get("calibration")
    if not found:
        return
    queries, references = format_count(found["queries"], "query"), format_count(found["references"], "reference")
    say(
        f"A training sample stands out (*) for {found['stand_out']:,} of {queries}, at a false discovery rate of "
        f"{found['rate']:.3g}, compared with {references}: {found['source']}."
    )
    if found["fewest"] > 1:
        say(
            f"With this number of references no p-value is below {found['floor']:.2g}, so either none or at least "
            f"{found['fewest']:,} queries stand out. With more references, fewer can."
        )
    if not found["clean_queries"]:
        say(
            "Ordinary queries may stand out as well, because each reference is a training row that was compared "
            "without the rows on its topic: trace some clean queries and name their run in calibration.references."
        )


def _line(text: str, width: int) -> str:
    return clip(visible(text), width)


def _shade(piece: Piece) -> str:
    """Black on one of three steps of orange (positive) or blue: hues that colour-blind people can distinguish."""
    if piece.special:
        return "dim"
    step = (abs(piece.level) + 1) // 3  # faint shades stay plain
    hues = ("#fdd0a2", "#fd8d3c", "#e6650d") if piece.level > 0 else ("#c6dbef", "#9ecae1", "#6baed6")
    return f"black on {hues[step - 1]}" if step else ""
