"""`tapwater pull`: bring a model onto this machine."""

from tapwater.cli.common import DEFAULT_MODEL, locate, verify


def pull(source: str = DEFAULT_MODEL, /) -> None:
    """Bring a model onto this machine and print where it lies.

    What is there already is not fetched again, but hashed again. An interrupted pull of a repository goes on where it
    stopped, one of a known name after the last finished part (the download, then the extraction).

    Parameters
    ----------
    source
        A known name, a path, a Hugging Face repository (owner/name, owner/name@revision, owner/name:file.gguf).
    """
    path = locate(source)
    verify(source)
    print(path)  # noqa: T201 - the result, for scripts
