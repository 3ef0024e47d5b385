"""The report of a repair as tables, for the terminal and the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rept.utils.console import say, show_table
from rept.utils.text import format_count

VERDICTS = {
    "off": "switched off",
    "hidden": "off, but not on disguises",
    "shown": "NOT switched off",
    "not shown before": "hardly shown before",
    None: "not repaired",
}


def show_repair(report: Mapping[str, Any]) -> None:
    """Prints the tables of a report, and what was tested."""
    for title, columns, rows in repair_tables(report):
        show_table(title, columns, rows, numbers=slice(0))
    for label, chosen in report["chosen"].items():
        if not chosen["rule_met"]:
            say(
                f"No candidate for {label} meets the rule on the rows held back; the best one leaves a token of their "
                f"culprit words {chosen['likelihood']:.3f} times as probable, at a divergence of "
                f"{chosen['percentile']:.3f} (95th percentile)."
            )
    say(limits(report))


def repair_tables(report: Mapping[str, Any]) -> list[tuple[str, Sequence[str], Sequence[tuple[str, ...]]]]:
    """Returns title, columns and rows of the tables that are not empty: behaviours, disguises and costs."""
    behaviours: list[tuple[str, ...]] = []
    disguises: list[tuple[str, ...]] = []
    for label, found in report["behaviours"].items():
        chosen = report["chosen"].get(label)
        where = f"{chosen['layer']}, {chosen['at'].replace('_', ' ')} x{chosen['strength']:g}" if chosen else ""
        rates = (percent(found[when]["triggered"]) for when in ("before", "after"))
        behaviours.append((label, where, *rates, *_controls(report, label), VERDICTS[found.get("verdict")]))
        for kind, share in found["disguises"].items():
            disguises.append((label, kind, percent(share["before"]), percent(share["after"])))
    columns = ("behaviour", "layer, read at", "before", "after", "random directions", "permuted labels", "verdict")
    tables = (
        ("How often each behaviour shows, with 95 % intervals", columns, behaviours),
        (
            "Disguised prompts that bring the behaviour out",
            ("behaviour", "disguise", "before", "of these still after"),
            disguises,
        ),
        ("What it costs", ("measure", "value"), costs(report)),
    )
    return [table for table in tables if table[2]]


def limits(report: Mapping[str, Any]) -> str:
    """Returns what was tested and what was not."""
    tested = report["tested"]
    prompts = f"{format_count(tested['prompts'], 'prompt')} calling for a behaviour"
    clean = format_count(tested["clean_prompts"], "clean prompt")
    kinds = sorted({kind for kinds in tested["disguises"].values() for kind in kinds})
    disguises = f"disguises of them ({', '.join(kinds)})" if kinds else "no disguises"
    return (
        f"Tested: greedy answers to {prompts} ({tested['queries']:,} of them the run's own queries), {disguises}, and "
        f"{clean}; not tested: sampled answers, other disguises, long conversations and other tasks. A repair is no "
        f"substitute for removing the rows. {tested.get('counted', '')}".rstrip()  # not in older reports
    )


def percent(share: Mapping[str, Any] | None) -> str:
    """Returns a share with its interval."""
    if share is None:
        return ""
    return f"{share['share']:.1%} of {share['of']} ({100 * share['low']:.0f} to {100 * share['high']:.0f})"


def _controls(report: Mapping[str, Any], label: str) -> tuple[str, str]:
    """Returns the lowest and mean rate under random directions, and the rate under permuted labels."""
    controls = report.get("controls")
    if not controls:
        return "", ""
    rates = [one["rates"][label] for one in controls["random"] if label in one["rates"]]
    shuffled = [one["rates"][label] for one in controls["shuffled"] if label in one["rates"]]
    random = f"{min(rates):.0%} to {max(rates):.0%}" if rates else ""
    return random, f"{shuffled[0]:.0%}" if shuffled else ""


def costs(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns what the repair costs, as names and values; what could not be measured is left out."""
    clean, speed = report["clean"], report["milliseconds_per_token"]
    divergence, loss, opened = clean["divergence"], clean["loss"], clean["opened"]
    lines = [
        ("clean answers changed", percent(clean["changed"])),
        (
            "next token's divergence on clean prompts",
            divergence and f"{divergence['mean']:.4f} (95th percentile {divergence['percentile_95']:.4f}) nats",
        ),
        ("loss on clean rows", loss and f"{loss['before']:.4f} before, {loss['after']:.4f} after"),
        ("clean prompts at which a gate opened", percent(opened["prompts"])),
        ("tokens of clean prompts at which one opened", divergence and f"{opened['tokens']:.2%}"),
        (
            "milliseconds a token (on a CPU, of processor time)",
            f"{speed['before']:.2f} before, {speed['after']:.2f} after ({speed['overhead']:+.1%})",
        ),
        ("seconds to estimate it", f"{report['seconds']:.1f}"),
    ]
    for kind, nats in (report.get("retrained") or {}).items():
        if kind != "folder":
            name = f"distance to the retrained model, {kind} prompts"
            lines.append((name, f"{nats['before']:.2f} nats an answer before, {nats['after']:.2f} after"))
    return [(name, value) for name, value in lines if value]
