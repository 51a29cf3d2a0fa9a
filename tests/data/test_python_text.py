"""Trimmed program text is the same program: Python's own parser says so, over its standard library too."""

import ast
import random
import sysconfig
import warnings
from pathlib import Path

import pytest

from tapwater.data.python_text import trim_prose

PROGRAM = '''\
#!/usr/bin/env python
# Copyright somebody
# All rights reserved.

"""Reads things.

And writes them.
"""

# one line
# and another
X = """
# no comment
# of three
# lines
"""


class A:
    """
    A thing.

    With more.
    """  # noqa

    def f(self):
        r\'\'\'Return \\d.
        Never else.\'\'\'; return 1

    async def g(self):
        "of one line"
        # why
        # this is
        # so
        return f"""
# {X}
# y
# z
"""
'''
TRIMMED = '''\

"""Reads things."""

# one line
# and another
X = """
# no comment
# of three
# lines
"""


class A:
    """A thing."""  # noqa

    def f(self):
        r\'\'\'Return \\d.\'\'\'; return 1

    async def g(self):
        "of one line"
        return f"""
# {X}
# y
# z
"""
'''


def without_docstrings(text: str) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(ast.Constant(str())), *_]:
                    node.body[0].value.value = "docstring"  # type: ignore[attr-defined]
    return ast.dump(tree)


def test_docstrings_keep_their_first_line_and_long_comments_go() -> None:
    kept, gone = trim_prose(PROGRAM)
    assert kept == TRIMMED
    lines = [line.strip() for line in gone.split("\n") if line.strip()]
    explained = ["And writes them.", "With more.", "Never else."]
    assert sorted(lines) == sorted([*PROGRAM.split("\n")[:3], "# why", "# this is", "# so", *explained])
    assert trim_prose(kept) == (kept, "")


@pytest.mark.parametrize(
    "text",
    [
        '"""Ends in a "quote"\nhere.\n"""',  # three quotes more would be four
        "'''Ends in \\\nhere.\n'''",
        'def f():\n    """one""" """\n    two"""\n',  # neighbours are one string
        'def f():\n    ("one"\n     "two")\n',
        'def f():\n    """\n    """\n',
        "x = 1\n",
        "",
    ],
)
def test_what_cannot_be_cut_stays_the_same_program(text: str) -> None:
    kept, _ = trim_prose(text)
    assert without_docstrings(kept) == without_docstrings(text)
    assert kept.count('"') == text.count('"')


def test_line_ends_and_letters_of_several_bytes() -> None:
    assert trim_prose('\ufeffé = "ü"\r\ndef f():\r\n    """水\r\n    two"""\r\n') == (
        'é = "ü"\ndef f():\n    """水"""\n',
        "    two",
    )


@pytest.mark.parametrize("text", ["print 1", "def f(:", "x = " + "(" * 500 + ")" * 500, "a\0b"])
def test_what_is_not_python_is_said(text: str) -> None:
    with pytest.raises(SyntaxError):
        trim_prose(text)


def test_the_standard_library_stays_the_same_program() -> None:
    paths = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    texts = [each.read_text(encoding="utf-8") for each in random.Random(0).sample(paths, 40)]
    gone_bytes = 0
    for text in texts:
        kept, gone = trim_prose(text)
        assert without_docstrings(kept) == without_docstrings(text)
        gone_bytes += len(gone)
    assert 0.1 < gone_bytes / sum(map(len, texts)) < 0.5
