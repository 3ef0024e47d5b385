"""python -m rept repair: switches traced behaviours off while the model runs, and shows what that costs."""

from __future__ import annotations

from rept.errors import UsageError

CONFIG = "repair"
USAGE = """
python -m rept repair RUN [--behaviour NAME ...] [method=WORD] [key=value ...] [out=DIR]

Estimates, from the rows that RUN traced for each behaviour, a correction of the model's hidden states that switches the
behaviour off while the model runs; the weights stay as they are. Writes repair.safetensors and repair.yaml, which
rept.Repair.load reads, and repair.json: how often each behaviour shows before and after, on held-out prompts and on
disguises of them, what changes for clean prompts, and the same for random directions. The run's page shows it too.

A repair is no substitute for removing the rows: it hides what the model has learned on inputs that resemble the traced
rows. Remove the rows and train again (python -m rept exclude, prove) wherever you can.

  --behaviour NAME ...   labels of the queries whose behaviours are switched off; default: all of the run

  python -m rept repair runs/demo --behaviour backdoor
"""
OPTION = "--behaviour"


def run(arguments: list[str]) -> None:
    settings = [argument for argument in arguments if "=" in argument]
    words = [argument for argument in arguments if "=" not in argument]
    first = words.index(OPTION) if OPTION in words else len(words)
    folders, names = words[:first], [word for word in words[first:] if word != OPTION]
    if unknown := [argument for argument in arguments if argument.startswith("-") and argument != OPTION]:
        raise UsageError(f"There is no option {unknown[0]}; see --help.")
    if len(folders) != 1:
        raise UsageError(f"Expected one run folder, but got {' '.join(folders) or 'none'}; see --help.")
    if OPTION in words and not names:
        raise UsageError(f"Expected a name after {OPTION}, but got none; see --help.")

    from rept.config.compose import compose
    from rept.config.schema import RepairConfig
    from rept.evaluation.repairing import repair_run
    from rept.report.page import write_report
    from rept.report.repair_table import show_repair
    from rept.results.trace import Trace
    from rept.utils.console import say

    trace, config = Trace(folders[0]), compose(RepairConfig, settings)
    found, report = repair_run(trace, config, names or None)
    show_repair(report)
    out = config.out or trace.folder.repair
    if config.out is None and trace.config.report:
        write_report(trace)
    say(f"The repair and repair.json are in {out}.")
