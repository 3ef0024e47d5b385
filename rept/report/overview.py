"""What was run and what was measured, in words, tables and figures for the page."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from markupsafe import Markup

from rept.config.schema import TARGET, ModelConfig, Node
from rept.report import charts, plot_data
from rept.results.html_text import number
from rept.results.trace import Trace

FAINT_LABELS = 12  # lines behind the mean, at most


@dataclass(frozen=True)
class Chart:
    title: str
    caption: str
    svg: Markup


def made(trace: Trace) -> str:
    """The day of the run, such as "21 November 2026"; empty where it is not known."""
    started = trace.provenance.get("started")
    if not started:
        return ""
    day = datetime.fromisoformat(started)
    return f"{day.day} {day:%B %Y}"


def lede(trace: Trace) -> str:
    """Under the headline: what was compared with what."""
    rows, set_aside = trace.metrics["rows"], sum(trace.metrics["rows"]["set_aside"].values())
    answered = sum(bool(trace.hits(query["query"])) for query in trace.queries)
    parts = [f"{answered:,} queries were held against {rows['attributed']:,} training rows"]
    if set_aside:
        parts.append(f"{set_aside:,} more were set aside")
    unanswered = len(trace.queries) - answered
    if unanswered:
        parts.append(f"{unanswered:,} queries could not be traced")
    generated = sum(bool(query["generated"]) for query in trace.queries)
    own = "The answers are" if generated == len(trace.queries) else f"{generated:,} of the answers are"
    answers = f" {own} the model's own." if generated else ""
    return f"{'; '.join(parts)}.{answers} {_reading(trace)}"


def figures(trace: Trace) -> list[Chart]:
    """Layer curve, average precision by layer, precision by k, histogram of scores: those that the run has data for."""
    drawn = [_layer_curve(trace), _layer_measures(trace), _precision(trace), _scores(trace)]
    return [chart for chart in drawn if chart]


def measures_table(trace: Trace) -> dict[str, Any] | None:
    """Columns and rows of the table of measures; None where nothing was measured."""
    overall, labels = trace.metrics.get("overall") or {}, trace.metrics.get("labels") or {}
    if not overall:
        return None
    several = len(labels) > 1
    columns = [("overall", overall), *(labels.items() if several else ())]
    rows = [(name.replace("_", " "), [_cell(values.get(name)) for _, values in columns]) for name in overall]
    for name, value in (trace.metrics.get("tokens") or {}).items():
        told = f"{name.removeprefix('token_').replace('_', ' ')} (tokens)"
        rows.append((told, [_cell(value), *("" for _ in columns[1:])]))
    return {"columns": [name for name, _ in columns], "rows": rows}


def facts(trace: Trace) -> list[tuple[str, str | list[str]]]:
    """What was run, as names and values; a list has one line each."""
    config, rows = trace.config, trace.metrics["rows"]
    told = [
        ("Model", _model(config.model)),
        ("Data", _node(config.datamodule, ("train", "queries", "split", "max_length", "exclude"))),
        ("Signature", _node(config.extractor, ("fields", "position"))),
        ("Layer", f"{_listed(trace.layers['layers'])}. {trace.layers['reason']}"),
        ("Scorer", _node(config.scorer, ())),
        ("Rows", _rows(rows)),
        ("Queries", _queries(trace)),
        ("Parts of the score", _parts(trace)),
        ("Seconds", _stages(trace)),
        ("Machine", _machine(trace)),
        ("Versions", ", ".join(f"{name} {v}" for name, v in (trace.provenance.get("versions") or {}).items())),
        ("Fingerprints", [f"{name}: {v}" for name, v in (trace.provenance.get("fingerprints") or {}).items()]),
        ("Seed", str(trace.provenance.get("seed", ""))),
    ]
    return [(name, value) for name, value in told if value]


def retraining(trace: Trace) -> str:
    """The command that trains again without the marked rows, as far as the run knows how its model was made; empty
    where its data cannot leave rows out."""
    data, model = trace.config.datamodule, trace.config.model
    if "exclude" not in data:
        return ""
    name = _name(data)
    given = [f"datamodule={name}"] if name != "synthetic" else []  # which is what train.py reads if nothing is said
    given += [f"datamodule.{key}={data[key]}" for key in ("train", "queries") if data.get(key)]
    trained = model.adapter or model.path
    compared = [f"compare_with={trained}"] if trained else []
    exclude = "datamodule.exclude=culprits.json"
    return shlex.join(["python", "train.py", *given, exclude, *compared, f"out={trace.folder.path}-without"])


def _reading(trace: Trace) -> str:
    layers = trace.layers["layers"]
    site = _name(trace.config.extractor).replace("_", " ")
    place = f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers"
    return f"Signatures: {site}, {place}; compared by {_name(trace.config.scorer).replace('_', ' ')}."


def _layer_curve(trace: Trace) -> Chart | None:
    curve = trace.layers.get("curve")
    if not curve:
        return None
    measure, probes = trace.layers["measure"], trace.layers.get("probes") or []
    svg = charts.layer_curve(curve, probes, trace.layers["layers"], measure, trace.layers["first"])
    agreement = trace.layers.get("agreement")
    told = [f"{measure.capitalize()}.", trace.layers["reason"]]
    if agreement is not None:
        told.append(f"{agreement:.0%} of {len(probes)} single probes (faint) agree.")
    return Chart("Layer", " ".join(told), svg)


def _layer_measures(trace: Trace) -> Chart | None:
    measured = plot_data.by_layer(trace)
    if not measured:
        return None
    sites = {site: [(layer, value) for s, layer, value in measured if s == site] for site, _, _ in measured}
    svg = charts.measure_by_layer(sites)
    named = ", ".join(site.replace("_", " ") for site in sites)
    return Chart("Average precision by layer", f"Each layer alone, over the whole ranking: {named}.", svg)


def _precision(trace: Trace) -> Chart | None:
    found = plot_data.precision(trace)
    if found is None:
        return None
    labels = found.labels[:FAINT_LABELS] if len(found.labels) > 1 else []
    caption = f"Share of rows with the query's label among its first k hits{', each label faint' if labels else ''}."
    return Chart("Precision by k", caption, charts.precision_curve(found.overall, labels))


def _scores(trace: Trace) -> Chart | None:
    found = plot_data.scores(trace)
    if found is None:
        return None
    tail = "flagged as standing out" if found.flagged else "the best hit of each query"
    svg = charts.score_histogram(found.low, found.width, found.counts, found.tail)
    told = f"All training rows against all queries, counted on a logarithmic scale; in colour: {tail}."
    return Chart("Scores", told, svg)


def _model(model: ModelConfig) -> str:
    adapter = f", adapter {model.adapter}" if model.adapter else ""
    return f"{model.path}{adapter}" if model.path else "the one that goes with the embedded data, or one given in Python"


def _node(node: Node, keys: tuple[str, ...]) -> str:
    """A plug-in's name and some of its settings."""
    settings = [f"{key} {_plain(node.get(key))}" for key in keys if node.get(key) is not None]
    return ", ".join([_name(node).replace("_", " "), *settings])


def _name(node: Node) -> str:
    """The module of a plug-in says what it is: extractors.sites.residual_stream.ResidualStream is "residual_stream"."""
    path = str(node.get(TARGET, "not recorded"))
    return path.split(".")[-2] if "." in path else path


def _plain(value: Any) -> str:
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)


def _rows(rows: dict[str, Any]) -> list[str]:
    told = [f"{rows['read']:,} read", f"{rows['attributed']:,} attributed"]
    told += [f"{rows['cut']:,} of them with the response cut at max_length"] if rows["cut"] else []
    return told + [f"{count:,} set aside: {reason}" for reason, count in rows["set_aside"].items()]


def _queries(trace: Trace) -> list[str]:
    reasons: dict[str, int] = {}
    for query in trace.queries:
        reasons[query["status"]] = reasons.get(query["status"], 0) + 1
    return [f"{count:,} {reason}" for reason, count in reasons.items()]


def _parts(trace: Trace) -> list[str]:
    told = []
    for name, figures in (trace.provenance.get("blocks") or {}).items():
        share = f"{figures['share']:.2%} of the score"
        norms = f"mean norm {figures['train_norm']:.3g} in training rows, {figures['query_norm']:.3g} in queries"
        told.append(f"{name}: {share}, {norms}")
    return told


def _stages(trace: Trace) -> str:
    stages = trace.provenance.get("stages") or {}
    peak = max((figures["peak_memory_bytes"] for figures in stages.values()), default=0)
    seconds = ", ".join(f"{name} {figures['seconds']:.1f}" for name, figures in stages.items())
    return f"{seconds}; at most {peak / 2**30:.1f} GiB of memory" if stages else ""


def _machine(trace: Trace) -> str:
    hardware = trace.provenance.get("hardware") or {}
    counts = [f"{hardware[name]} {name}" for name in ("threads", "processes") if name in hardware]
    parts = [hardware.get("processor"), *counts, *(hardware.get("gpus") or [])]
    return ", ".join(part for part in parts if part)


def _listed(values: list[int]) -> str:
    return ", ".join(map(str, values))


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else number(value)
