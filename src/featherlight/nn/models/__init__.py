"""Models: pretrained ones from disk, classifiers on top of sentence encoders, and networks for images."""

from featherlight.nn.models.device import default_device
from featherlight.nn.models.pretrained import Pretrained, load_pretrained, quiet_loading, resolve_model, save_pretrained
from featherlight.nn.models.sentence_classifier import SentenceClassifier
from featherlight.nn.models.small_conv_net import SmallConvNet

__all__ = [
    "Pretrained",
    "SentenceClassifier",
    "SmallConvNet",
    "default_device",
    "load_pretrained",
    "quiet_loading",
    "resolve_model",
    "save_pretrained",
]
