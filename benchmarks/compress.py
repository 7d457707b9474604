"""What a compressed file is worth: bytes of the same weights by several coders, speed of decoding, floats without loss.

    python benchmarks/compress.py --part coder      # LeNet-300-100 and LeNet-5-Caffe, pruned and shared on the spot
    python benchmarks/compress.py --part decode
    python benchmarks/compress.py --part lossless   # MiniLM-L6, which an installed package carries
    python benchmarks/compress.py --part damage     # 100,000 random corruptions of a file
    python benchmarks/compress.py --part training   # hours; `--minutes` begins nothing after so many, and it goes on where it was

Times are seconds of one core's work, not of the clock. `--short` takes one seed and fewer rounds.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import compress_coders, compress_training
from benchmarks.common import write_results

PARTS = {
    "coder": compress_coders.coder,
    "decode": compress_coders.decode,
    "lossless": compress_coders.lossless,
    "damage": compress_coders.damage,
    "training": compress_training.training,
}


def main() -> None:
    """Runs a part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=PARTS, required=True)
    parser.add_argument("--short", action="store_true")
    parser.add_argument("--minutes", type=float, help="of the training: begin no run after so many")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    more = {"minutes": asked.minutes} if asked.part == "training" else {}
    rows, targets = PARTS[asked.part](short=asked.short, **more)
    for row in rows:
        print(row)
    write_results(f"compress_{asked.part}" + ("_short" if asked.short else ""), rows, targets)


if __name__ == "__main__":
    main()
