"""``amprenta-vectors doctor``: what is amiss with the database, the index or the settings."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from amprenta_vectors.cli.options import json_option
from amprenta_vectors.cli.printer import say
from amprenta_vectors.errors import ExitCode

if TYPE_CHECKING:
    from amprenta_vectors.doctor.finding import Finding


@click.command()
@json_option()
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Look for what is amiss with server, index, table and settings; each finding has the command that mends it.

    Changes nothing, and reads the rows of the table (AMPRENTA_TABLE) twice at most, to count them. Findings are
    serious, advice, or notes that need no mending. Exit 0 if none is serious, else 1.
    """
    from amprenta_vectors.config import Settings
    from amprenta_vectors.doctor.examine import examine
    from amprenta_vectors.doctor.finding import SEVERITIES

    findings = examine(Settings.load())
    number = Counter(finding.severity for finding in findings)
    if as_json:
        counts = {severity: number[severity] for severity in SEVERITIES}
        say(json.dumps({**counts, "findings": [asdict(finding) for finding in findings]}))
    else:
        for finding in findings:
            _print(finding)
        say(f"{number['serious']} serious, {number['advice']} advised")
    ctx.exit(ExitCode.FAILED if number["serious"] else ExitCode.CLEAN)


def _print(finding: Finding) -> None:
    say(f"{finding.severity:<7}  {finding.check}: {finding.found}")
    if finding.mend:
        say(f"         mend: {finding.mend}")
