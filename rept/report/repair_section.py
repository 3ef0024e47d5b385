"""The page's section about the repair of a run, if `python -m rept repair` has made one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rept.report.repair_table import VERDICTS, controls_of, costs, limits, percent
from rept.results.trace import Trace
from rept.utils.json_files import read_json


@dataclass(frozen=True)
class RepairSection:
    """What the section shows.

    Attributes:
        behaviours: label, rate before and after, under random directions and permuted labels, and the verdict of each.
        disguises: label, kind, rate before, and after of those.
        costs: names and values.
        limits: what was tested and what was not.
    """

    behaviours: list[tuple[str, ...]]
    disguises: list[tuple[str, ...]]
    costs: list[tuple[str, str]]
    limits: str


def repair_section(trace: Trace) -> RepairSection | None:
    """Returns the content of ``repair/repair.json`` in the run folder as text; None if there is none."""
    file = trace.folder.repair / "repair.json"
    if not file.is_file():
        return None
    report: dict[str, Any] = read_json(file)
    behaviours: list[tuple[str, ...]] = []
    disguises: list[tuple[str, ...]] = []
    for label, found in report["behaviours"].items():
        rates = (percent(found[when]["triggered"]) for when in ("before", "after"))
        behaviours.append((label, *rates, *controls_of(report, label), VERDICTS[found.get("verdict")]))
        for kind, share in found["disguises"].items():
            disguises.append((label, kind, percent(share["before"]), percent(share["after"])))
    return RepairSection(behaviours, disguises, costs(report), limits(report))
