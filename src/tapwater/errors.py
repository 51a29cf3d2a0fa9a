"""The errors a user can cause or mend; the CLI prints them without a traceback, the server as OpenAI error bodies."""


class TapwaterError(Exception):
    """Something the user gave cannot be honoured; the message says what was wrong, where, and what to do."""


class ConfigError(TapwaterError):
    """A configuration (model or run) is unknown, malformed or contradicts itself."""


class CheckpointError(TapwaterError):
    """Model files are missing, damaged or contradict their configuration."""


class DataError(TapwaterError):
    """A corpus, its sources or its shards are missing, damaged or empty."""


class TrainingError(TapwaterError):
    """A training run cannot start, go on or be resumed."""


class DivergedError(TrainingError):
    """A loss, gradient or held-out text gave no finite number, and there is nothing to go back to."""


class RequestError(TapwaterError):
    """A generation request cannot be honoured; `param` names the offending field, `code` is machine-readable."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code
