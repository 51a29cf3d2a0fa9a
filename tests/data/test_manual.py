"""Manual pages: words stay, macros and escapes go."""

import pytest

from tapwater.data.manual import plain_text, unescape


def test_man_macros() -> None:
    page = r"""'\" t
.\" a comment
.TH CAT 1 "May 2024" "GNU"
.SH NAME
cat \- join files
.SH DESCRIPTION
.B cat
copies
.IR FILE (s)
to output.
.PP
.TP
\fB\-n\fR, \fB\-\-number\fR
number the
lines
.nf
  a  b
  c
.fi
.de XX
hidden
..
It costs 3 \(Eu\[u20AC].
"""
    assert plain_text(page) == (
        "CAT(1)\n\nNAME\n\ncat - join files\n\nDESCRIPTION\n\ncat copies FILE(s) to output.\n\n"
        "-n, --number\nnumber the lines\n  a  b\n  c\nIt costs 3 €."
    )


def test_mdoc_macros() -> None:
    page = ".Dd May 1\n.Dt LS 1\n.Sh NAME\n.Nm ls\n.Nd list files\n.Sh SYNOPSIS\n.Nm\n.Op Fl a\n.Ar file\n.Xr cat 1 ,\n"
    assert plain_text(page) == "NAME\n\nls list files\n\nSYNOPSIS\n\nls [-a] file cat(1),"


def test_chinese_lines_join_without_a_blank() -> None:
    assert plain_text(".SH 名称\n显示\n文件\nfile\n") == "名称\n\n显示文件 file"


@pytest.mark.parametrize(
    ("escaped", "plain"),
    [(r"a\e\(bub\&", "a\\•b"), (r"\s-2x\s0 \m[blue]y\m[]", "x y"), (r"\*(lqq\*(rq", "“q”"), (r"a\"b", "a"), ("\\", "")],
)
def test_escapes(escaped: str, plain: str) -> None:
    assert unescape(escaped) == plain
