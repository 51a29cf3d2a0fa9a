"""What every report page is made of: the page itself, sections, tables and plots with captions."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.metadata import version
from pathlib import Path

from tapwater.cli import report_plots as plots


def page(title: str, kind: str, about: str, said: str, sections: Iterable[str]) -> str:
    """A whole HTML page that needs nothing else; `kind` is what the title says it is, `said` its small print."""
    css = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}: {kind}</title>\n<style>\n{css}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n<p>{escape(about)}</p>\n"
        f'<p class="soft">{escape(said)} tapwater {version("tapwater")}, {datetime.now(UTC).date()}.</p>\n'
        f"{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def section(title: str, body: str) -> str:
    return f"<section>\n<h2>{escape(title)}</h2>\n{body}\n</section>\n"


def drawing(name: str, alternative: str, draw: plots.Draw, caption: str, height: float = plots.SIZE[1]) -> str:
    """A plot with its caption; `alternative` is what a screen reader says of it."""
    drawn = plots.svg(name, alternative, draw, height)
    return f"<figure>{drawn}<figcaption>{escape(caption)}</figcaption></figure>"


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], right: int, caption: str = "") -> str:
    """A table; the `right` columns after the first hold numbers."""

    def kind(column: int) -> str:
        return (
            ' class="number"'
            if 1 <= column <= right
            else ' class="text"'
            if column and column == len(header) - 1
            else ""
        )

    head = "".join(f'<th scope="col"{kind(column)}>{escape(cell)}</th>' for column, cell in enumerate(header))
    body = "".join(
        f'<tr><th scope="row">{escape(row[0])}</th>'
        + "".join(f"<td{kind(column)}>{escape(cell)}</td>" for column, cell in enumerate(row[1:], 1))
        + "</tr>\n"
        for row in rows
    )
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption or "table")}"><table>{named}'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>\n"
    )
