"""Python program text with less prose in it, for models too small to learn a language besides Python."""

import ast
import re
import warnings
from collections.abc import Iterator

from tapwater.data.filters import GENERATED_LINES, says_generated

LONG_COMMENT = 3  # lines in a row: licences and explanations
_TRIPLE = re.compile(rb"""[rRuU]?("{3}|'{3})[ \t]*""")
_GONE = b"\0"  # a line that is not written; no other holds this character, which is no Python
_WORD = re.compile(r"\w")
_HAS_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def trim_prose(text: str) -> tuple[str, str]:
    """The text with docstrings cut to their first line of words and without comments of three lines or more; what went.

    It is still the same program but for those strings: its syntax tree differs in docstrings alone. Those stay whole
    whose first line could not end there (with a quote or a backslash), and the first lines of a file that say a program
    wrote it, for the filter that looks for them. Line ends are
    "\\n" afterwards, a byte order mark goes. Raises SyntaxError for what is not Python of the running interpreter.
    """
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    tree = _parsed(text)
    lines = text.encode().split(b"\n")
    spared = GENERATED_LINES if says_generated(text) else 0
    gone: list[bytes] = []
    for first, last in list(_long_comments(lines, _lines_in_strings(tree))):
        if first >= spared:
            gone += lines[first:last]
            last += _is_blank(lines, first - 1) and _is_blank(lines, last)  # one of two gaps that meet
            lines[first:last] = [_GONE] * (last - first)  # docstrings are found by line: none may move yet
    for node in _docstrings(tree):
        if node.lineno > spared:
            _cut(lines, node, gone)
    kept = b"\n".join(line for line in lines if line != _GONE)
    return kept.decode(), b"\n".join(gone).decode()


def _parsed(text: str) -> ast.Module:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "invalid escape sequence" of other people's files
            return ast.parse(text)
    except (ValueError, RecursionError, MemoryError) as error:  # deep nesting is one of the latter two
        raise SyntaxError(str(error)) from None


def _lines_in_strings(tree: ast.Module) -> set[int]:
    """Numbers from 0 of lines that a string of several lines covers: a '#' there begins no comment."""
    covered: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno != node.lineno:
            covered.update(range(node.lineno - 1, node.end_lineno or node.lineno))
    return covered


def _long_comments(lines: list[bytes], in_strings: set[int]) -> Iterator[tuple[int, int]]:
    """Ranges of numbers of lines. One after a backslash stays: it ends the statement that would go on without it."""
    start = 0
    for number in range(len(lines) + 1):
        if number < len(lines) and lines[number].lstrip().startswith(b"#") and number not in in_strings:
            continue
        if number - start >= LONG_COMMENT and not (start and lines[start - 1].endswith(b"\\")):
            yield start, number
        start = number + 1


def _is_blank(lines: list[bytes], number: int) -> bool:
    """Also before the first line and after the last."""
    return not 0 <= number < len(lines) or not lines[number].strip()


def _docstrings(tree: ast.Module) -> Iterator[ast.Constant]:
    for node in ast.walk(tree):
        if isinstance(node, _HAS_DOCSTRING) and node.body and isinstance(node.body[0], ast.Expr):
            value = node.body[0].value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                yield value


def _cut(lines: list[bytes], node: ast.Constant, gone: list[bytes]) -> None:
    """Shorten a triple-quoted string of several lines to the first that has words; others stay as they are."""
    first, last = node.lineno - 1, (node.end_lineno or node.lineno) - 1
    opening = _TRIPLE.match(lines[first], node.col_offset)
    if first == last or opening is None:
        return
    quotes = opening.group(1)
    start, stop = opening.end(), node.end_col_offset or 0
    body = [lines[first][start:], *lines[first + 1 : last], lines[last][: stop - len(quotes)]]
    if any(quotes in line for line in body):
        return  # several strings next to each other
    place = next((place for place, line in enumerate(body) if _WORD.search(line.decode())), 0)
    summary = body[place].strip()
    if summary.endswith((quotes[:1], b"\\")):
        return  # the quotes that follow would not end it
    gone += [line for number, line in enumerate(body) if number != place]
    lines[first] = lines[first][:start] + summary + quotes + lines[last][stop:]
    for number in range(first + 1, last + 1):
        lines[number] = _GONE
