"""What was run and what was measured, in words and tables for the page and the terminal."""

from __future__ import annotations

import shlex
from collections import Counter
from datetime import datetime
from pathlib import Path

from rept.config.schema import TARGET, Node
from rept.results.html_text import format_number
from rept.results.trace import Trace
from rept.utils.text import format_count, visible

MOST_LABELS = 20  # that are listed by name


def run_date(trace: Trace) -> str:
    """The day of the run, such as "21 November 2026"."""
    day = datetime.fromisoformat(trace.provenance["started"])
    return f"{day.day} {day:%B %Y}"


def introduction(trace: Trace) -> str:
    """What was compared with what, as shown below the headline."""
    rows, answered = trace.metrics["rows"], len(trace.answered)
    set_aside, unanswered = sum(rows["set_aside"].values()), len(trace.queries) - answered
    compared = "was compared with" if answered == 1 else "were compared with"
    parts = [f"{format_count(answered, 'query')} {compared} {format_count(rows['attributed'], 'training row')}"]
    if set_aside:
        parts.append(f"{format_count(set_aside, 'more row')} set aside")
    if unanswered:
        parts.append(f"{format_count(unanswered, 'query')} not traced")
    generated, every = sum(bool(query["generated"]) for query in trace.queries), len(trace.queries)
    some = f" The model itself gave {generated:,} of {format_count(every, 'answer')}." if generated else ""
    answers = " The answers are the model's own." if generated == every > 1 else some
    layers = trace.layers["layers"]
    site, scorer = (_name(node).replace("_", " ") for node in (trace.config.extractor, trace.config.scorer))
    where = f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers"
    return f"{'; '.join(parts)}.{answers} Signatures: {site}, {where}; compared by {scorer}."


def measures_table(trace: Trace) -> tuple[list[str], list[tuple[str, list[str]]]] | None:
    """Names of the columns, and rows with name and cells; None where nothing was measured."""
    overall, labels = trace.metrics.get("overall") or {}, trace.metrics.get("labels") or {}
    if not overall:
        return None
    columns = {"overall": overall} | (labels if len(labels) > 1 else {})
    rows = [(name, [_cell(values.get(name)) for values in columns.values()]) for name in overall]
    for name, value in (trace.metrics.get("tokens") or {}).items():
        rows.append((f"{name} (tokens)", [_cell(value), *[""] * (len(columns) - 1)]))
    return list(columns), rows


def behaviours_table(trace: Trace) -> list[tuple[str, str, str, str, str]]:
    """For each behaviour its name, number of queries, five best rows, rows at 10 % false ones, and average precision.

    What is not known is empty.
    """
    rows = []
    for name in trace.behaviours:
        measured = trace.metrics["behaviours"][name]
        best = ", ".join(str(hit.row) for hit in trace.behaviour(name)[:5])
        sharing = _cell(measured.get("rows", {}).get("0.1"))
        rows.append((name, f"{measured['queries']:,}", best, sharing, _cell(measured.get("average_precision"))))
    return rows


def label_problems(trace: Trace) -> list[str]:
    """Labels of queries that no training row has, and queries whose answer does not show their behaviour."""
    lines = []
    if missing := trace.metrics.get("missing_labels"):
        asked = ", ".join(f"{visible(label)} ({format_count(n, 'query')})" for label, n in missing["queries"].items())
        known = ", ".join(map(visible, missing["training"][:MOST_LABELS]))
        rest = len(missing["training"]) - MOST_LABELS
        others = f" and {rest:,} more" if rest > 0 else ""
        there = f"the training rows have: {known}{others}" if known else "no training row has a label of a behaviour"
        lines.append(f"No training row has the label {asked}; {there}.")
    if trace.not_shown:
        more = ["..."] if len(trace.not_shown) > MOST_LABELS else []
        numbers = ", ".join([*map(str, sorted(trace.not_shown)[:MOST_LABELS]), *more])
        lines.append(
            f"The answer does not show the behaviour of the label for {format_count(len(trace.not_shown), 'query')} "
            f"({numbers}), left out where the page counts what queries lead to."
        )
    return lines


def token_notes(trace: Trace) -> list[str]:
    """For how many queries token scores were computed from one query alone, which is weaker."""
    scored = [trace.tokens(query, rows[0])["train"] for query in trace.answered if (rows := trace.scored(query))]
    alone = sum(one.form == "distinctive" and one.references == 1 for one in scored)
    if not alone:
        return []
    return [
        f"The token scores of {alone:,} of {format_count(len(scored), 'query')} come from that query alone, which is "
        "weaker than several: give queries of the same kind one label, or name them in behaviours=FILE."
    ]


def row_counts(trace: Trace) -> list[str]:
    """What became of the training rows."""
    rows = trace.metrics["rows"]
    counts = [f"{format_count(rows['read'], 'row')} read", f"{rows['attributed']:,} attributed"]
    if rows["cut"]:
        counts.append(f"{rows['cut']:,} of them with the response cut at max_length")
    return counts + [f"{count:,} set aside: {reason}" for reason, count in rows["set_aside"].items()]


def facts(trace: Trace) -> list[tuple[str, list[str]]]:
    """What was run, as names with one or more lines of text."""
    config, recorded = trace.config, trace.provenance
    layers = ", ".join(map(str, trace.layers["layers"]))
    model = config.model.path or "the model of the embedded data, or one given in Python"
    adapter = f", adapter {config.model.adapter}" if config.model.path and config.model.adapter else ""
    named: dict[str, list[str]] = {
        "Model": [model + adapter],
        "Data": [_node(config.datamodule, "train", "queries", "split", "max_length", "exclude")],
        "Signature": [_node(config.extractor, "fields", "position")],
        "Layer": [f"{layers}. {trace.layers['reason']}"],
        "Scorer": [_node(config.scorer)],
        "Rows": row_counts(trace),
        "Queries": [f"{count:,} {status}" for status, count in Counter(q["status"] for q in trace.queries).items()],
        "Blocks of the signature": _parts(trace),
        "Seconds": _stages(trace),
        "Machine": _machine(trace),
        "Versions": [", ".join(f"{name} {version}" for name, version in recorded["versions"].items())],
        "Fingerprints": [f"{name}: {value}" for name, value in recorded["fingerprints"].items()],
        "Seed": [str(recorded["seed"])],
    }
    return [(name, lines) for name, lines in named.items() if any(lines)]


def exclude_command(trace: Trace) -> str:
    """The command that writes culprits.json from the hits of the run."""
    return _command(trace, "exclude", "--first", str(min(10, trace.config.top_k)))


def prove_command(trace: Trace) -> str:
    """The command that trains again without the culprits; empty where the recipe is not known or takes no rows out."""
    trained = trace.config.model.adapter or trace.config.model.path
    # Without a path it is the model of the embedded data, which a run trains by train.py.
    known = trained is None or (Path(trained).expanduser() / "training.yaml").is_file()
    return _command(trace, "prove", "culprits.json") if known and "exclude" in trace.config.datamodule else ""


def _command(trace: Trace, name: str, *arguments: str) -> str:
    return shlex.join(["python", "-m", "rept", name, str(trace.folder.path), *arguments])


def _node(node: Node, *keys: str) -> str:
    """A plug-in's name and some of its settings."""
    values = {key: node[key] for key in keys if node.get(key) is not None}
    settings = [f"{k} {' and '.join(map(str, v)) if isinstance(v, list) else v}" for k, v in values.items()]
    return ", ".join([_name(node).replace("_", " "), *settings])


def _name(node: Node) -> str:
    """The module of a plug-in: of extractors.sites.residual_stream.ResidualStream it is "residual_stream"."""
    path = str(node.get(TARGET, "not recorded"))
    return path.split(".")[-2] if "." in path else path


def _parts(trace: Trace) -> list[str]:
    return [
        f"{name}: {figures['share']:.2%} of the cosine, mean norm {figures['train_norm']:.3g} in training rows, "
        f"{figures['query_norm']:.3g} in queries"
        for name, figures in trace.provenance.get("blocks", {}).items()
    ]


def _stages(trace: Trace) -> list[str]:
    stages = trace.provenance["stages"]
    peak = max(figures["peak_memory_bytes"] for figures in stages.values())
    seconds = ", ".join(f"{name} {figures['seconds']:.1f}" for name, figures in stages.items())
    return [f"{seconds}; at most {peak / 2**30:.1f} GiB of memory"]


def _machine(trace: Trace) -> list[str]:
    hardware = trace.provenance["hardware"]
    counts = [f"{name} {hardware[name]}" for name in ("threads", "processes")]
    return [", ".join([hardware["processor"], *counts, *hardware["gpus"]])]


def _cell(value: float | int | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else format_number(value)
