"""An autoencoder with a vector quantizer in its middle: images or signals as codes, and back.

Legend of shapes: B examples, C channels, S sizes (rows and columns, or time), F features of a position, s positions.
"""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from featherlight.nn.vector_quantizers import Codes, Quantized, Quantizer


class Reconstruction(NamedTuple):
    """What an autoencoder makes of its input.

    Attributes:
        output: the input again, as far as the codes can say it; (B, C, *S).
        latents: what the encoder handed to the quantizer; (B, F, *s).
        quantized: what the quantizer made of it.
    """

    output: Tensor
    latents: Tensor
    quantized: Quantized


class QuantizedAutoencoder(nn.Module):
    """Encoder, vector quantizer, decoder.

    Values in [0, 1] (images) or [-1, 1] (signals) are brought to zero mean and about unit size by `shift` and `scale`
    before the encoder, and back after the decoder. The output is not cut to the range of the input.

    Args:
        encoder: from (B, C, *S) to (B, F, *s).
        quantizer: of F features, made for channels on axis 1; a module.
        decoder: from (B, F, *s) to (B, C, *S).
        shift: is taken off the input.
        scale: by which it is then divided.

    Raises:
        ValueError: a quantizer that is no module, or a scale that is not positive.
    """

    quantizer: Quantizer

    def __init__(
        self, encoder: nn.Module, quantizer: Quantizer, decoder: nn.Module, *, shift: float = 0.0, scale: float = 1.0
    ) -> None:
        super().__init__()
        if not isinstance(quantizer, nn.Module):
            raise ValueError(
                f"`quantizer` is a {type(quantizer).__name__}, which is no torch Module, so a save would not keep it."
            )
        if not scale > 0:
            raise ValueError(f"`scale` must be positive, as the input is divided by it; got {scale}.")
        self.encoder = encoder
        self.quantizer = quantizer
        self.decoder = decoder
        self.shift = shift
        self.scale = scale

    def forward(self, x: Float[Tensor, "B C *S"]) -> Reconstruction:
        """The input through the bottleneck."""
        latents = self.latents(x)
        quantized = self.quantizer(latents)
        return Reconstruction(self.decode_values(quantized.values), latents, quantized)

    def latents(self, x: Float[Tensor, "B C *S"]) -> Float[Tensor, "B F *s"]:
        """What the quantizer is handed."""
        return self.encoder((x - self.shift) / self.scale)

    def encode(self, x: Float[Tensor, "B C *S"]) -> Codes:
        """The codes of each position; in evaluation mode they are what `decode` gives the output of `forward` from."""
        return self.quantizer(self.latents(x)).codes

    def decode(self, codes: Codes) -> Float[Tensor, "B C *S"]:
        """What codes stand for."""
        return self.decode_values(self.quantizer.codes_to_values(codes))

    def decode_values(self, values: Float[Tensor, "B F *s"]) -> Float[Tensor, "B C *S"]:
        """What quantized vectors stand for."""
        return self.decoder(values) * self.scale + self.shift
