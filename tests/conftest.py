"""Property tests draw the same examples every time, are never timed, and fail at the first example they find."""

from hypothesis import Phase, settings

settings.register_profile("featherlight", deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate))
settings.load_profile("featherlight")
