"""Serve a model, ask its OpenAI-compatible API for two completions, and stop the server."""

import json
import socket
import subprocess
import sys
import time
import urllib.request

PROMPTS = (
    "import os\n\ndef read_file(path):\n    ",
    "<｜fim▁begin｜>def add(first, second):\n    <｜fim▁hole｜>\n\nprint(add(1, 2))\n<｜fim▁end｜>",
)


def main(model: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "tapwater", "serve", model, f"server.port={port}"])
    try:
        wait_for(f"http://127.0.0.1:{port}/v1/models", server)
        for prompt in PROMPTS:
            body = {"model": "export", "prompt": prompt, "max_tokens": 48, "temperature": 0}
            answer = ask(f"http://127.0.0.1:{port}/v1/completions", body)
            print(f"--- {prompt!r}\n{answer['choices'][0]['text']}")
    finally:
        server.terminate()
        server.wait()


def wait_for(url: str, server: subprocess.Popen) -> None:
    for _ in range(600):
        if server.poll() is not None:
            sys.exit("the server ended")
        try:
            urllib.request.urlopen(url).close()
            return
        except OSError:
            time.sleep(0.1)
    sys.exit("the server did not come up within a minute")


def ask(url: str, body: dict) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


if __name__ == "__main__":
    main(sys.argv[1])
