"""The chat page in a real browser, against the real server with the real model."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Route, expect, sync_playwright

from serving import FakeLLM, Running, eventually, running
from tapwater.llm import LLM

ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
ARGUMENTS += ["--disable-sync", "--no-first-run"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    executable = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if executable is None:
        pytest.skip("no Chromium on this machine; install it to drive the page")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page and what it did that a visitor does not see."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requested: list[str] = field(default_factory=list)

    def open(self, server: Running) -> Page:
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", self._saw)
        self.page.goto(server.url)
        return self.page

    def _heard(self, message: ConsoleMessage) -> None:
        # A refused request is logged by the browser itself; the page shows it, which tests below check.
        if message.type in ("error", "warning") and "the server responded with a status of" not in message.text:
            self.complaints.append(message.text)

    def _saw(self, request: Request) -> None:
        if not request.url.startswith("data:"):
            self.requested.append(request.url)


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """A fresh visit; at its end the console must be clean and no other host asked for anything."""
    with browser.new_context() as context:
        visit = Visit(context.new_page())
        yield visit
        assert visit.complaints == []
        home = visit.page.url
        assert visit.requested
        assert all(url.startswith(home) for url in visit.requested)


@pytest.fixture
def fake() -> Iterator[Running]:
    llm = FakeLLM(max_context=100_000)
    with running(llm) as server:
        yield server
    llm.gate.set()
    llm.close()


def say(page: Page, text: str) -> None:
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")


def configure(page: Page, **fields: str) -> None:
    page.get_by_role("button", name="Settings").click()
    for label, value in fields.items():
        page.get_by_label(label.replace("_", " ")).fill(value)


def test_an_answer_of_the_real_model(visit: Visit, smollm2_server: Running) -> None:
    page = visit.open(smollm2_server)
    expect(page.get_by_text("smollm2-135m-instruct")).to_be_visible()
    expect(page.get_by_label("Message", exact=True)).to_be_focused()
    configure(page, Temperature="0")
    say(page, "What is the capital of France?")
    expect(page.locator(".user")).to_have_text("What is the capital of France?")
    expect(page.locator(".assistant .text")).to_contain_text("Paris", timeout=60_000)
    facts = page.locator(".facts")
    expect(facts).to_have_text(re.compile(r"^\d+ tokens · [\d.]+ tokens/s$"), timeout=60_000)
    assert int(facts.inner_text().split()[0]) > 5
    say(page, "And of Italy?")  # the conversation goes along
    expect(page.locator(".assistant .text").nth(1)).to_contain_text("Rome", timeout=60_000)


def test_stop_ends_the_generation_too(visit: Visit, smollm2_server: Running, smollm2: LLM) -> None:
    page = visit.open(smollm2_server)
    configure(page, Temperature="0")
    say(page, "Write a very long story about a river, with many chapters.")
    expect(page.locator(".assistant .text")).to_have_text(re.compile(r"\w+ \w+ \w+"), timeout=60_000)
    assert smollm2.num_running == 1
    page.get_by_role("button", name="Stop").click()
    eventually(lambda: smollm2.num_running == 0)
    expect(page.locator(".facts")).to_have_text(re.compile(r"^about \d+ tokens · [\d.]+ tokens/s · stopped$"))
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    expect(page.get_by_label("Message", exact=True)).to_be_focused()


def test_the_answer_appears_while_it_is_made(visit: Visit, fake: Running) -> None:
    fake.llm.reply, fake.llm.token_s = "one two three four five six seven eight", 0.1
    page = visit.open(fake)
    say(page, "Count")
    answer = page.locator(".assistant .text")
    expect(answer).to_have_text(re.compile("^one two"))
    assert "eight" not in answer.inner_text()
    expect(page.get_by_role("log")).to_have_attribute("aria-busy", "true")
    expect(answer).to_have_text("one two three four five six seven eight")
    expect(page.get_by_role("log")).to_have_attribute("aria-busy", "false")
    expect(page.locator(".facts")).to_have_text(re.compile(r"^8 tokens · (\d|10)\.\d tokens/s$"))


def test_escape_stops_and_gives_an_unanswered_question_back(visit: Visit, fake: Running) -> None:
    fake.llm.gate.clear()
    page = visit.open(fake)
    say(page, "Anyone there?")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    eventually(lambda: fake.llm.num_running == 1)
    page.keyboard.press("Escape")
    eventually(lambda: fake.llm.num_running == 0)
    expect(page.get_by_label("Message", exact=True)).to_have_value("Anyone there?")
    expect(page.locator(".user, .assistant, .error")).to_have_count(0)


def test_settings_reach_the_server(visit: Visit, fake: Running) -> None:
    page = visit.open(fake)
    configure(page, System_prompt="Be brief.", Temperature="0.3", Most_tokens_in_an_answer="4")
    say(page, "Hi")
    expect(page.locator(".facts")).to_have_text(re.compile(r"^4 tokens .*cut at the token limit$"))
    ((prompt, params, _),) = fake.llm.submitted
    assert bytes(prompt) == b"<system>Be brief.<user>Hi"
    assert (params.temperature, params.max_tokens) == (0.3, 4)


def test_impossible_settings_are_not_sent(visit: Visit, fake: Running) -> None:
    page = visit.open(fake)
    configure(page, Temperature="7")
    say(page, "Hi")
    expect(page.get_by_label("Temperature")).to_be_focused()
    assert fake.llm.submitted == []


def test_errors_are_shown_and_the_question_given_back(visit: Visit, fake: Running) -> None:
    page = visit.open(fake)
    configure(page, Most_tokens_in_an_answer="999999")
    say(page, "Hi")
    expect(page.get_by_role("alert")).to_contain_text("context 100000, prompt 8")
    expect(page.get_by_label("Message", exact=True)).to_have_value("Hi")
    page.get_by_label("Most tokens in an answer").fill("")
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".assistant .text")).to_have_text(fake.llm.reply)
    expect(page.get_by_role("alert")).to_have_count(0)


def test_an_engine_failure_keeps_what_was_said(visit: Visit, fake: Running) -> None:
    fake.llm.fail_after = 3
    page = visit.open(fake)
    say(page, "Hi")
    expect(page.get_by_role("alert")).to_have_text("the engine failed: a wire came loose")
    expect(page.locator(".assistant .text")).to_have_text("Water is made")


def test_new_chat_forgets_and_stops(visit: Visit, fake: Running) -> None:
    page = visit.open(fake)
    say(page, "First")
    expect(page.locator(".facts")).to_be_visible()
    fake.llm.gate.clear()
    say(page, "Second")
    eventually(lambda: fake.llm.num_running == 1)
    assert b"First" in bytes(fake.llm.submitted[-1][0])
    page.get_by_role("button", name="New chat").click()
    eventually(lambda: fake.llm.num_running == 0)
    expect(page.locator(".user, .assistant, .error")).to_have_count(0)
    fake.llm.gate.set()
    say(page, "Third")
    expect(page.locator(".facts")).to_have_count(1)
    assert bytes(fake.llm.submitted[-1][0]) == b"<user>Third"


def test_answers_are_text_never_markup(visit: Visit, fake: Running) -> None:
    hostile = "<img src=x onerror=alert(1)> <b>bold</b>\n```html\n<script>alert(2)</script>\n```\n`<i>` **strong** end"
    fake.llm.reply = hostile
    page = visit.open(fake)
    say(page, "<u>hm</u>")
    expect(page.locator(".facts")).to_be_visible()
    assert page.locator(".user").inner_text() == "<u>hm</u>"
    answer = page.locator(".assistant .text")
    assert answer.locator("img, b, i, u, script").count() == 0
    assert answer.locator("pre").inner_text() == "<script>alert(2)</script>"
    assert answer.locator(".prose code").inner_text() == "<i>"
    assert answer.locator("strong").inner_text() == "strong"
    assert "<img src=x onerror=alert(1)>" in answer.inner_text()


def test_shift_enter_makes_a_line_and_enter_sends(visit: Visit, fake: Running) -> None:
    page = visit.open(fake)
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two")
    page.keyboard.press("Enter")
    expect(page.locator(".user")).to_have_text("one\ntwo")
    page.keyboard.press("Enter")  # nothing to send
    expect(page.locator(".facts")).to_have_count(1)
    assert len(fake.llm.submitted) == 1


def test_events_are_read_however_the_network_cuts_them(visit: Visit, fake: Running) -> None:
    """Server-sent events with CRLF, comments and a body in one piece; and one that ends too soon."""
    chunk = '{"choices":[{"index":0,"delta":{"content":"%s"},"finish_reason":null}]}'
    bodies = [
        f": keep-alive\r\n\r\ndata: {chunk % 'tröpfeln '}\r\n\r\ndata:{chunk % '💧'}\r\n\r\ndata: [DONE]\r\n\r\n",
        f"data: {chunk % 'half'}\n\n",
    ]

    def answer(route: Route) -> None:
        route.fulfill(status=200, content_type="text/event-stream", body=bodies.pop(0))

    page = visit.open(fake)
    page.route("**/v1/chat/completions", answer)
    say(page, "one")
    expect(page.locator(".assistant .text").first).to_have_text("tröpfeln 💧")
    say(page, "two")
    expect(page.get_by_role("alert")).to_contain_text("before the answer was complete")


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_overflows_sideways(visit: Visit, fake: Running, width: int) -> None:
    fake.llm.reply = "w" * 300 + "\n```\n" + "c" * 300 + "\n```\nend"
    visit.page.set_viewport_size({"width": width, "height": 700})
    page = visit.open(fake)
    configure(page, System_prompt="x" * 300)
    say(page, "y" * 300)
    expect(page.locator(".facts")).to_be_visible()
    for selector in ("html", "header", "main", "footer", ".user", ".assistant"):
        overflow = page.locator(selector).evaluate("node => node.scrollWidth - node.clientWidth")
        assert overflow <= 0, selector
    for name in ("Settings", "New chat", "Send"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert box
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast_in_both_schemes(browser: Browser, fake: Running, scheme: str) -> None:
    """WCAG AA: 4.5 to 1 for every kind of text on what is behind it."""
    with browser.new_context(color_scheme=scheme) as context:
        page = context.new_page()
        page.goto(fake.url)
        say(page, "Hi `there`")
        expect(page.locator(".facts")).to_be_visible()
        for text, behind in ((".facts", "body"), (".user", ".user"), (".text", "body"), ("#send", "#send")):
            color = page.locator(text).evaluate("node => getComputedStyle(node).color")
            ground = page.locator(behind).evaluate("node => getComputedStyle(node).backgroundColor")
            assert contrast(color, ground) >= 4.5, (text, color, ground)


def contrast(first: str, second: str) -> float:
    darker, lighter = sorted((luminance(first), luminance(second)))
    return (lighter + 0.05) / (darker + 0.05)


def luminance(color: str) -> float:
    channels = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
