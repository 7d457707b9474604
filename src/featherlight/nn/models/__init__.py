"""Models: pretrained ones from disk, and classifiers on top of sentence encoders."""

from featherlight.nn.models.pretrained import Pretrained, load_pretrained, quiet_loading, resolve_model, save_pretrained
from featherlight.nn.models.sentence_classifier import SentenceClassifier

__all__ = ["Pretrained", "SentenceClassifier", "load_pretrained", "quiet_loading", "resolve_model", "save_pretrained"]
