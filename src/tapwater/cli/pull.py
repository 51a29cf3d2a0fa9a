"""`tapwater pull`: bring a model onto this machine."""

from tapwater.cli.common import DEFAULT_MODEL, locate


def pull(source: str = DEFAULT_MODEL, /) -> None:
    """Bring a model onto this machine and print where it lies.

    What is there already is not fetched again; an interrupted pull goes on where it stopped.

    Parameters
    ----------
    source
        A known name, a path, a Hugging Face repository (owner/name, owner/name@revision, owner/name:file.gguf).
    """
    print(locate(source))  # noqa: T201 - the result, for scripts
