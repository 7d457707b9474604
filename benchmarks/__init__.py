"""Side-by-side runs against peers. Importing the package first keeps the profiler quiet."""

import featherlight

__all__ = ["featherlight"]
