"""Tables in plain text. rich draws finer ones, but to load it and draw takes as long as everything else a verb does."""

import shutil
import textwrap
from collections.abc import Sequence

MIN_LAST = 20  # columns of a wrapped cell, however narrow the terminal


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: str) -> str:
    """Lines of aligned columns; `right` has an `r` for each column that is flush right, and the last one is wrapped.

    header: one name a column; rows: as many cells. The width is the terminal's, 80 or COLUMNS without one.
    """
    lines = [header, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header) - 1)]
    indent = sum(widths) + 2 * len(widths)
    last = max(MIN_LAST, shutil.get_terminal_size().columns - indent)
    out: list[str] = []
    for line in lines:
        cells = [
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(line[:-1], widths, right, strict=False)
        ]
        wrapped = textwrap.wrap(line[-1], last, break_on_hyphens=False, break_long_words=False) or [""]
        out.append("  ".join([*cells, wrapped[0]]).rstrip())
        out += [" " * indent + rest for rest in wrapped[1:]]
    return "\n".join(out) + "\n"
