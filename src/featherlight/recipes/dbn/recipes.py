"""Recipes of deep belief nets."""

from featherlight.recipes.catalogue import recipe
from featherlight.recipes.dbn.config import BackpropConfig, DbnConfig, PretrainingConfig, UpDownConfig


@recipe(cost="15 s on 1 core", data="scikit-learn's digits, installed with featherlight[digits]")
def digits() -> DbnConfig:
    """A small deep belief net on 8x8 digits: learned layer by layer, fine-tuned twice, and asked for digits."""
    return DbnConfig(
        data="digits",
        valid_fraction=0.2,
        hidden=(64, 64, 256),
        pretraining=PretrainingConfig(epochs=40),
        up_down=UpDownConfig(epochs=20),
        backprop=BackpropConfig(epochs=60, dropout_inputs=0.0, dropout_hidden=0.2),
        batch=50,
    )


@recipe(cost="16 minutes on 1 busy core", data="mnist/ in the folder FEATHERLIGHT_DATA")
def mnist() -> DbnConfig:
    """The net of 2006 on MNIST: 784-500-500-2000 units and 10 labels."""
    return DbnConfig(
        pretraining=PretrainingConfig(epochs=4),
        up_down=UpDownConfig(epochs=1),
        backprop=BackpropConfig(epochs=14, lr=1e-3, dropout_inputs=0.15, dropout_hidden=0.25),
    )
