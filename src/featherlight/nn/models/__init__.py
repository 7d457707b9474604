"""Models: pretrained ones from disk, classifiers on top of sentence encoders, networks for images, and autoencoders."""

from featherlight.nn.models.code_prior import CodePrior
from featherlight.nn.models.conv_autoencoder import ConvDecoder, ConvEncoder
from featherlight.nn.models.deep_belief_net import DeepBeliefNet, WakeSleep
from featherlight.nn.models.device import default_device
from featherlight.nn.models.patch_discriminator import PatchDiscriminator
from featherlight.nn.models.pretrained import Pretrained, load_pretrained, quiet_loading, resolve_model, save_pretrained
from featherlight.nn.models.quantized_autoencoder import QuantizedAutoencoder, Reconstruction
from featherlight.nn.models.restricted_boltzmann import (
    BinaryUnits,
    ContrastiveDivergence,
    GaussianUnits,
    LabelledUnits,
    NegativePhase,
    PersistentChains,
    RestrictedBoltzmannMachine,
    VisibleUnits,
    contrastive_losses,
)
from featherlight.nn.models.sentence_classifier import SentenceClassifier
from featherlight.nn.models.small_conv_net import SmallConvNet

__all__ = [
    "BinaryUnits",
    "CodePrior",
    "ContrastiveDivergence",
    "ConvDecoder",
    "ConvEncoder",
    "DeepBeliefNet",
    "GaussianUnits",
    "LabelledUnits",
    "NegativePhase",
    "PatchDiscriminator",
    "PersistentChains",
    "Pretrained",
    "QuantizedAutoencoder",
    "Reconstruction",
    "RestrictedBoltzmannMachine",
    "SentenceClassifier",
    "SmallConvNet",
    "VisibleUnits",
    "WakeSleep",
    "contrastive_losses",
    "default_device",
    "load_pretrained",
    "quiet_loading",
    "resolve_model",
    "save_pretrained",
]
