"""Property tests draw the same examples every time, and are never timed."""

from hypothesis import settings

settings.register_profile("featherlight", deadline=None, derandomize=True)
settings.load_profile("featherlight")
