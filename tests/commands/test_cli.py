"""What all command lines share: exit codes, and what is said where a command does not end well."""

from __future__ import annotations

from rept.cli import main


def test_ctrl_c_promises_nothing_about_what_is_stored(capsys):
    """It may come between two runs of a comparison, in a ranking, or in a training with checkpoints."""

    def run(arguments: list[str]) -> None:
        raise KeyboardInterrupt

    assert main(None, "usage", run, []) == 130
    assert capsys.readouterr().err == "Stopped; run the same command again to resume, or to start over.\n"
