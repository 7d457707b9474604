"""Train, fine-tune and ship neural networks within a budget of memory, time and bytes."""

import os

# The profiler that memory is measured with writes two lines to standard error each time unless told so before torch loads.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
# And the allocator a third, of blocks that were there before it began.
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

__version__ = "0.1.0"
