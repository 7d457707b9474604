"""What is done with the journal of an image classifier: the trained network again, without the images."""

from pathlib import Path
from typing import Any

import torch

from featherlight.objective import seeded_random
from featherlight.recipes.classify.config import config_from_text
from featherlight.recipes.classify.network import Network, base_digest, model_of, read_network, write_network
from featherlight.trainer import (
    Tracker,
    check_base,
    read_journal_or_share,
    replace_directory,
    replay_journal,
    silent,
    weights_digest,
)


def replay(
    base: Path | None, journal: Path, out: Path, *, steps: int | None = None, track: Tracker = silent
) -> dict[str, Any]:
    """Rebuilds a trained classifier from what it started from and its journal.

    Args:
        base: the run or model that was `initial`; None for a run from random weights, which its seed gives again.
        journal: of the run.
        out: directory for the model, which must not exist.
        steps: how many steps are replayed; None takes all.
        track: shows how far it is.

    Returns:
        Steps, the digest of all parameters, that of the trained ones as the run noted it or None, and a sentence on damage
        or None.

    Raises:
        ValueError: another base, a damaged header, a journal of something else, or an `out` that exists.
    """
    if out.exists():
        raise ValueError(f"{out} exists already. Give another directory.")
    contents = read_journal_or_share(journal)
    stop = contents.last_step(steps)
    config = config_from_text(contents.header["config"], source=f"the config in {journal}")
    with seeded_random(config.seed, torch.device("cpu")):
        model = model_of(contents.header["network"])
    if base is not None:
        model.load_state_dict(read_network(base).start(with_head=False), strict=False)
    network = Network(model=model, classes=tuple(contents.header["classes"]), has_fresh_head=False)
    check_base(contents.header["base"], base_digest(network), str(journal))
    replay_journal(contents, model, steps=stop, track=track)
    digest = weights_digest(dict(model.named_parameters()))
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_directory(out, lambda path: write_network(path, model, network.classes))
    trained = contents.digest_at(stop)
    return {"steps": stop, "sha256": digest, "trained_sha256": trained, "damage": contents.damage}
