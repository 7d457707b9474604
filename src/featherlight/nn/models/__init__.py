"""Models: the classics for images and sequences, pretrained ones from disk, classifiers on sentence encoders, and autoencoders.

Normalization (`Norm`), positions (`Positions`), shortcuts and recurrent cells are parts that networks are handed.
"""

from featherlight.nn.models.alexnet import AlexNet
from featherlight.nn.models.attention import BlockShape, CrossAttention, KeyValueCache, SelfAttention, TransformerBlock
from featherlight.nn.models.code_prior import CodePrior
from featherlight.nn.models.conv_autoencoder import ConvDecoder, ConvEncoder
from featherlight.nn.models.deep_belief_net import DeepBeliefNet, WakeSleep
from featherlight.nn.models.dense_autoencoder import DenoisingAutoencoder, DenseAutoencoder, GaussianNoise, MaskingNoise
from featherlight.nn.models.device import default_device
from featherlight.nn.models.encoder_decoder import DecoderBlock, DecoderState, EncoderDecoder
from featherlight.nn.models.generation import SequenceModel, generate
from featherlight.nn.models.gpt import GPT2_SMALL, Gpt
from featherlight.nn.models.lenet import CaffeLeNet, LeNet5, LeNet300
from featherlight.nn.models.mobile_net import MobileNet, SeparableBlock, XceptionBlock
from featherlight.nn.models.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, NoNorm, Norm
from featherlight.nn.models.patch_discriminator import PatchDiscriminator
from featherlight.nn.models.positions import LearnedPositions, Positions, Rotary, Sinusoidal
from featherlight.nn.models.pretrained import Pretrained, load_pretrained, quiet_loading, resolve_model, save_pretrained
from featherlight.nn.models.quantized_autoencoder import QuantizedAutoencoder, Reconstruction
from featherlight.nn.models.recurrent import (
    Cell,
    LstmCell,
    PlainCell,
    RecurrentClassifier,
    RecurrentForecaster,
    RecurrentLanguageModel,
    RecurrentLayers,
    RecurrentShape,
)
from featherlight.nn.models.resnet import (
    LARGE_STEM,
    SMALL_STEM,
    PreActivationBlock,
    Projection,
    ResidualBlock,
    ResNet,
    Shortcut,
    Stem,
    ZeroPadding,
    resnet8,
    resnet18,
    resnet20,
)
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
from featherlight.nn.models.sentence_classifier import SentenceClassifier, module_folders
from featherlight.nn.models.small_conv_net import SmallConvNet
from featherlight.nn.models.vision_transformer import VisionTransformer

__all__ = [
    "GPT2_SMALL",
    "LARGE_STEM",
    "SMALL_STEM",
    "AlexNet",
    "BatchNorm",
    "BinaryUnits",
    "BlockShape",
    "CaffeLeNet",
    "Cell",
    "CodePrior",
    "ContrastiveDivergence",
    "ConvDecoder",
    "ConvEncoder",
    "CrossAttention",
    "DecoderBlock",
    "DecoderState",
    "DeepBeliefNet",
    "DenoisingAutoencoder",
    "DenseAutoencoder",
    "EncoderDecoder",
    "GaussianNoise",
    "GaussianUnits",
    "Gpt",
    "GroupNorm",
    "InstanceNorm",
    "KeyValueCache",
    "LabelledUnits",
    "LayerNorm",
    "LeNet5",
    "LeNet300",
    "LearnedPositions",
    "LstmCell",
    "MaskingNoise",
    "MobileNet",
    "NegativePhase",
    "NoNorm",
    "Norm",
    "PatchDiscriminator",
    "PersistentChains",
    "PlainCell",
    "Positions",
    "PreActivationBlock",
    "Pretrained",
    "Projection",
    "QuantizedAutoencoder",
    "Reconstruction",
    "RecurrentClassifier",
    "RecurrentForecaster",
    "RecurrentLanguageModel",
    "RecurrentLayers",
    "RecurrentShape",
    "ResNet",
    "ResidualBlock",
    "RestrictedBoltzmannMachine",
    "Rotary",
    "SelfAttention",
    "SentenceClassifier",
    "SeparableBlock",
    "SequenceModel",
    "Shortcut",
    "Sinusoidal",
    "SmallConvNet",
    "Stem",
    "TransformerBlock",
    "VisibleUnits",
    "VisionTransformer",
    "WakeSleep",
    "XceptionBlock",
    "ZeroPadding",
    "contrastive_losses",
    "default_device",
    "generate",
    "load_pretrained",
    "module_folders",
    "quiet_loading",
    "resnet8",
    "resnet18",
    "resnet20",
    "resolve_model",
    "save_pretrained",
]
