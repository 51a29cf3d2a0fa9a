import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapwater.errors import RequestError
from tapwater.text import StopStrings

# Two letters, so that stop strings overlap themselves, each other and the text often.
letters = st.text(alphabet="ab", max_size=12)
stop_lists = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), max_size=4)


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """The rule read off whole prefixes: the first prefix that ends in a stop string, less the longest such."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


def run(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    watcher = StopStrings(stops)
    out = ""
    for piece in pieces:
        shown, stopped = watcher.push(piece)
        out += shown
        if stopped:
            assert watcher.flush() == ""
            assert watcher.push("more") == ("", True)
            return out, True
    return out + watcher.flush(), False


@given(pieces=st.lists(letters, max_size=8), stops=stop_lists)
def test_cut_does_not_depend_on_piece_borders(pieces: list[str], stops: list[str]) -> None:
    assert run(pieces, stops) == cut("".join(pieces), stops)


@given(pieces=st.lists(letters, max_size=8), stop=st.text(alphabet="ab", min_size=1, max_size=4))
def test_single_stop_cuts_where_find_finds_it(pieces: list[str], stop: str) -> None:
    text = "".join(pieces)
    at = text.find(stop)
    assert run(pieces, [stop]) == ((text[:at], True) if at >= 0 else (text, False))


@given(pieces=st.lists(letters, max_size=8), stops=stop_lists)
def test_nothing_is_held_that_cannot_become_a_stop(pieces: list[str], stops: list[str]) -> None:
    watcher = StopStrings(stops)
    seen = shown = ""
    for piece in pieces:
        text, stopped = watcher.push(piece)
        if stopped:
            break
        seen, shown = seen + piece, shown + text
        held = seen[len(shown) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)


def test_stop_across_pieces_is_not_shown() -> None:
    watcher = StopStrings(["\n\nUser:"])
    assert watcher.push("Hello\n") == ("Hello", False)
    assert watcher.push("\nUs") == ("", False)
    assert watcher.push("er: hi") == ("", True)


def test_held_text_comes_when_the_stop_does_not() -> None:
    watcher = StopStrings(["END"])
    assert watcher.push("the EN") == ("the ", False)
    assert watcher.push("TRY EN") == ("ENTRY ", False)
    assert watcher.flush() == "EN"


def test_no_stops_pass_everything_through() -> None:
    assert StopStrings([]).push("abc") == ("abc", False)


def test_empty_stop_string_is_refused() -> None:
    with pytest.raises(RequestError, match="must not be empty") as caught:
        StopStrings(["ok", ""])
    assert caught.value.param == "stop"


def test_one_bare_string_is_refused() -> None:
    with pytest.raises(RequestError, match="list of strings"):
        StopStrings("END")
