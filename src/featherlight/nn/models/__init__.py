"""Models: pretrained ones from disk, classifiers on top of sentence encoders, networks for images, and autoencoders."""

from featherlight.nn.models.code_prior import CodePrior
from featherlight.nn.models.conv_autoencoder import ConvDecoder, ConvEncoder
from featherlight.nn.models.device import default_device
from featherlight.nn.models.patch_discriminator import PatchDiscriminator
from featherlight.nn.models.pretrained import Pretrained, load_pretrained, quiet_loading, resolve_model, save_pretrained
from featherlight.nn.models.quantized_autoencoder import QuantizedAutoencoder, Reconstruction
from featherlight.nn.models.sentence_classifier import SentenceClassifier
from featherlight.nn.models.small_conv_net import SmallConvNet

__all__ = [
    "CodePrior",
    "ConvDecoder",
    "ConvEncoder",
    "PatchDiscriminator",
    "Pretrained",
    "QuantizedAutoencoder",
    "Reconstruction",
    "SentenceClassifier",
    "SmallConvNet",
    "default_device",
    "load_pretrained",
    "quiet_loading",
    "resolve_model",
    "save_pretrained",
]
