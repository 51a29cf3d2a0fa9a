"""How long an example takes says more of a busy machine than of the code."""

from hypothesis import settings

settings.register_profile("busy", deadline=None)
settings.load_profile("busy")
