"""How the chat page is served; what it does is in tests/e2e/test_page.py."""

import base64
import hashlib
import re

import httpx2

from tapwater.server.schema import ChatRequest


def test_policy_admits_the_inline_script_and_style_and_nothing_else(http: httpx2.Client) -> None:
    response = http.get("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(rule.split(" ", 1) for rule in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["connect-src"] == "'self'"
    for tag in ("script", "style"):
        begin = response.text.index(f"<{tag}>") + len(tag) + 2
        inline = response.text[begin : response.text.index(f"</{tag}>")]
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    assert not any("unsafe" in source or "*" in source for source in policy.values())


def test_page_names_no_other_host_and_never_parses_html(http: httpx2.Client) -> None:
    text = http.get("/").text
    assert re.findall(r"https?://[^'\"]+", text) == ["http://www.w3.org/2000/svg"]  # an XML namespace in the icon
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", text)


def test_page_is_kept_but_asked_for_again(http: httpx2.Client) -> None:
    first = http.get("/")
    assert first.headers["cache-control"] == "no-cache"
    again = http.get("/", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert http.get("/", headers={"If-None-Match": '"other"'}).status_code == 200
    assert http.head("/").status_code == 200


def test_page_sends_only_fields_the_server_takes(http: httpx2.Client) -> None:
    text = http.get("/").text
    literal = re.search(r"const body = \{(.*?)\};", text)
    assert literal
    sent = re.findall(r"(?:^|, )(\w+)", re.sub(r"\{.*?\}", "", literal[1].strip())) + re.findall(r"body\.(\w+) =", text)
    assert {"model", "messages", "stream", "stream_options", "temperature", "max_tokens"} == set(sent)
    assert set(sent) <= ChatRequest.model_fields.keys()
