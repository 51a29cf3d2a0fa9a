"""Manual pages to plain text: the macros of man(7) and mdoc(7) that carry words, without an external program.

It is for reading, not for printing: fonts, indents and tables' lines go, words, paragraphs and headings stay.
"""

import re

_NAMED = {
    "aq": "'", "dq": '"', "cq": "’", "oq": "‘", "lq": "“", "rq": "”", "em": "—", "en": "–", "hy": "-", "mi": "-",
    "bu": "•", "co": "©", "rg": "®", "tm": "™", "ha": "^", "ti": "~", "rs": "\\", "bs": "\\", "ga": "`", "aa": "´",
    "pl": "+", "eq": "=", "**": "*", "sl": "/", "ba": "|", "or": "|", "->": "→", "<-": "←", "<=": "≤", ">=": "≥",
    "+-": "±", "mu": "×", "de": "°", "Fo": "«", "Fc": "»", "at": "@", "sh": "#", "Do": "$", "ss": "ß", "'e": "é",
    ":a": "ä", ":o": "ö", ":u": "ü", "R": "®", "Tm": "™", "S": "",
}  # fmt: skip
_ESCAPE = re.compile(
    r"""\\(?:
      (?P<comment>["\#].*)
    | [\*\(]?(?:\((?P<two>..)|\[(?P<long>[^\]]*)\])
    | \*(?P<string>.)
    | [fFkMmgnVY](?:\(..|\[[^\]]*\]|.)
    | s[-+]?(?:'[^']*'|\[[^\]]*\]|\(?\d{1,2})
    | [ABCDHLNRSXZbhlovwx]'[^']*'
    | (?P<one>.)
    | $ )""",
    re.VERBOSE,
)
_CODE = re.compile("u[0-9A-F]{4,6}")
_COMMENT = re.compile(r'\\".*')
_ARGUMENT = re.compile(r'"((?:[^"]|"")*)"?|(\S(?:\\ |\S)*)')
_ONE = {"e": "\\", "-": "-", "~": " ", " ": " ", "0": " ", "'": "'", "`": "`", ".": ".", "\\": "\\", "t": "\t"}
_MACRO = re.compile(r"^[.'][ \t]*([^\s\\]+)[ \t]*(.*)$")
_HEADINGS = frozenset({"SH", "Sh", "SS", "Ss"})
_PARAGRAPHS = frozenset({"PP", "P", "LP", "Pp", "sp", "HP", "IP", "TP", "It", "Bl", "El", "RS", "RE", "TQ", "Bd", "Ed"})
_PREFORMATTED = {"nf": True, "EX": True, "Bd": True, "fi": False, "EE": False, "Ed": False}
_FONTS = frozenset({"B", "I", "SM", "R", "SB", "CW"})
_ALTERNATING = frozenset({"BR", "RB", "IR", "RI", "BI", "IB"})
_QUOTES = {"Dq": "“”", "Sq": "‘’", "Qq": '""', "Op": "[]", "Pq": "()", "Bq": "[]", "Brq": "{}", "Aq": "<>", "Ql": "‘’"}
_MDOC = (
    "Ar Cm Ic Em Sy Li Pa Va Vt Fn Fa Ft Ev Er Dv An Ad Cd In Lk Mt Tn St No Ns Ux Bx Fx Nx Ox Bsx Dx At Nm Xr Fl "
    "Nd Dl D1 Cl Ms Me Qo Qc So Sc Do Dc Oo Oc Po Pc Bo Bc Ao Ac Xo Xc Bro Brc Rv Ex Os Rs Re %A %T %B %J %D %U"
)
_MDOC_WORDS = frozenset(_MDOC.split())
_PUNCTUATION = frozenset(".,:;()[]?!")


def plain_text(page: str) -> str:
    """The words of a groff source; macros that only set type are dropped, as are unknown ones."""
    page = page.replace("\\\n", "")
    if ".de" in page or ".ig" in page:
        page = re.sub(r"(?ms)^[.'][ \t]*(?:de1?|am|ig)\b.*?^\.\.[ \t]*$\n?", "", page)
    return _Page().render(page.split("\n"))


class _Page:
    """The text so far, the paragraph that is being filled, and what the last macros said of the next line."""

    def __init__(self) -> None:
        self._blocks: list[str] = []
        self._words: list[str] = []
        self._preformatted = False
        self._is_tag = False  # the next line is the tag of a paragraph and stands alone
        self._name = ""  # what .Nm without words repeats

    def render(self, lines: list[str]) -> str:
        in_table_format = False
        for line in lines:
            is_request = line[:1] in (".", "'")
            match = _MACRO.match(line) if is_request else None
            if match is None:
                if in_table_format:
                    in_table_format = not line.rstrip().endswith(".")
                elif not is_request:
                    self._say(unescape(line))
                continue
            macro, rest = match.groups()
            if macro == "TS":
                in_table_format = True
                self._break()
            elif macro == "TE":
                in_table_format = False
                self._break()
            else:
                self._macro(macro, rest)
        self._break()
        return re.sub(r"\n{3,}", "\n\n", "\n".join(self._blocks)).strip("\n")

    def _macro(self, macro: str, rest: str) -> None:
        if macro in _HEADINGS:
            self._break()
            self._blocks += ["", " ".join(_arguments(rest)), ""]
        elif macro == "TH":
            name, section = (*_arguments(rest), "", "")[:2]
            self._blocks.append(f"{name}({section})")
        elif macro in _PARAGRAPHS:
            self._break()
            if macro not in ("TQ", "It") and self._blocks and self._blocks[-1]:
                self._blocks.append("")
            self._is_tag = macro in ("TP", "TQ")
            if macro in ("IP", "It"):
                self._words += [" ".join(_mdoc(rest, self._name)) if macro == "It" else "".join(_arguments(rest)[:1])]
                self._break()
        elif macro == "br":
            self._break()
        elif macro in _FONTS:
            self._say(" ".join(_arguments(rest)))
        elif macro in _ALTERNATING:
            self._say("".join(_arguments(rest)))
        elif macro in ("UR", "MT"):
            self._say(f"<{''.join(_arguments(rest)[:1])}>")
        elif macro in _MDOC_WORDS or macro in _QUOTES:
            if macro == "Nm" and not self._name:
                self._name = " ".join(_arguments(rest))
            self._say(" ".join(_mdoc(f"{macro} {rest}", self._name)))
        if macro in _PREFORMATTED:
            self._break()
            self._preformatted = _PREFORMATTED[macro]

    def _say(self, text: str) -> None:
        if self._preformatted:
            self._break()
            self._blocks.append(text)
        elif not (stripped := text.strip()):
            self._break()
            self._blocks.append("")
        else:
            self._words.append(stripped)
            if self._is_tag:
                self._break()
        self._is_tag = False

    def _break(self) -> None:
        if self._words:
            self._blocks.append(_filled(self._words))
            self._words = []


def unescape(text: str) -> str:
    """Characters for groff's escapes; fonts, sizes and motions vanish."""
    return _ESCAPE.sub(_escape, text) if "\\" in text else text


def _escape(match: re.Match[str]) -> str:
    kind = match.lastgroup
    if kind is None or kind == "comment":
        return ""
    name = match[kind]
    if kind == "one":
        return _ONE.get(name, "")
    if name[:1] == "u" and _CODE.fullmatch(name):
        code = int(name[1:], 16)
        return chr(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else ""
    return _NAMED.get(name, "")


def _arguments(rest: str) -> list[str]:
    if '\\"' in rest:
        rest = _COMMENT.sub("", rest)
    words = _ARGUMENT.findall(rest) if '"' in rest or "\\ " in rest else None
    if words is None:
        return [unescape(each) for each in rest.split()]
    return [unescape(bare or quoted.replace('""', '"')) for quoted, bare in words]


def _mdoc(rest: str, name: str) -> list[str]:
    """The words of an mdoc line: callable macros in it are carried out, punctuation clings to the word before."""
    words: list[str] = []
    closing = prefix = ""  # what quotes still lack; what goes before the next word
    reference = 0  # words still to come of .Xr: the page and its section
    arguments = _arguments(rest)
    for index, word in enumerate(arguments):
        following = arguments[index + 1] if index + 1 < len(arguments) else ""
        if word == "Fl":
            prefix += "-"
            if not following:
                words.append(prefix)
        elif word == "Xr":
            reference = 2
        elif word == "Nm" and (not following or following in _PUNCTUATION):
            words.append(prefix + name)
            prefix = ""
        elif word in _QUOTES:
            prefix += _QUOTES[word][0]
            closing = _QUOTES[word][1] + closing
        elif word in _MDOC_WORDS:
            continue
        elif word in _PUNCTUATION and words and word not in ("(", "["):
            words[-1] += word
        elif reference == 1:
            words[-1] += f"({word})"
            reference = 0
        else:
            words.append(prefix + word)
            prefix = ""
            reference = max(0, reference - 1)
    if words:
        words[-1] += closing
    return words


def _filled(words: list[str]) -> str:
    """Lines of a paragraph in one; between two Chinese or Japanese characters there is no blank."""
    text = words[0]
    for word in words[1:]:
        text += word if text[-1:] >= "\u3000" and word[:1] >= "\u3000" else f" {word}"
    return text
