"""`tapwater serve`: an OpenAI-compatible endpoint and a chat page."""

from dataclasses import replace

from tapwater.cli.common import (
    DEFAULT_MODEL,
    ConfigFile,
    Overrides,
    console,
    load,
    model_id,
    split_overrides,
)
from tapwater.config import load_run
from tapwater.errors import ConfigError


def serve(
    model: str = DEFAULT_MODEL,
    /,
    *overrides: Overrides,
    host: str | None = None,
    port: int | None = None,
    config: ConfigFile = None,
) -> None:
    """Answer OpenAI's API at /v1 and show a chat page at /.

    Ctrl-C or SIGTERM lets running answers finish (server.drain_s); a second one ends them.

    Parameters
    ----------
    model
        What to serve; pulled first when it is not on this machine.
    host
        The address to listen on; short for server.host=...
    port
        The port to listen on, 0 for any free one; short for server.port=...
    """
    try:
        from tapwater.server.serve import bind, run_server
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("tapwater"):
            raise
        message = f"serving needs the package {error.name}; install it with: pip install 'tapwater[serve]'"
        raise ConfigError(message) from None

    model, settings = split_overrides(model, overrides)
    run = load_run(config, settings)
    server = replace(
        run.server,
        host=run.server.host if host is None else host,
        port=run.server.port if port is None else port,
    )
    out = console()

    def say(message: str) -> None:
        out.print(message, markup=False, highlight=False, soft_wrap=True)

    def ready(url: str) -> None:
        say(f"{model_id(model)} answers at {url} (API: {url}/v1), computed by {llm.computed_by}. Ctrl-C stops it.")

    with bind(server) as listener:  # a taken port shows before the model is loaded
        llm = load(model, run)
        try:
            run_server(
                llm,
                listener,
                model_id=model_id(model),
                server=server,
                on_ready=ready,
                on_drain=lambda count: say(f"Finishing running answers ({count}); Ctrl-C again ends them."),
            )
        finally:
            llm.close()
