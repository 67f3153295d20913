"""What a person sees at the end of the demo; or JSON, when a script asks for it."""

from __future__ import annotations

from dataclasses import asdict

from rich.text import Text

from core.visible import visible
from pkm.demo import DemoReport
from pkm.screen import output, show_fields, show_hits, show_rows

__all__ = ["show_demo"]


def show_demo(report: DemoReport, *, as_json: bool) -> None:
    """Print what the demo found in every store."""
    if as_json:
        show_fields(asdict(report), title="", as_json=True)
        return
    output.print()
    show_rows(
        [{"store": name, "rows": rows} for name, rows in report.rows.items()], as_json=False, title="What is where"
    )
    for title, rows in (
        ("Top concepts", report.concepts),
        ("Top entities", report.entities),
        ("Windows of 5 minutes", report.windows),
    ):
        output.print()
        show_rows(rows, as_json=False, title=title)
    output.print()
    question = visible(" ".join(report.question.split()))
    output.print(Text(f'Search: "{question}"', style="italic"), soft_wrap=True)
    show_hits(report.hits, as_json=False)
    output.print()
    output.print(f"{report.documents} documents in {report.seconds:.0f} s", style="bold")
