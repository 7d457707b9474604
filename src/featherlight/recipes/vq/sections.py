"""What the report shows of an autoencoder with a vector quantizer.

Legend of shapes: N examples, C channels, S sizes, s positions, K codes, k mixed codes, Q stages.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from featherlight.nn.vector_quantizers import Codes
from featherlight.recipes.vq.experiment import Codec, Score
from featherlight.recipes.vq.losses import squared_error
from featherlight.report import BarChart, Block, LineChart, Section, Table

_SHOWN = 16
_COLUMNS = 8
_SHOWN_CODES = 64
_MOST_BARS = 1024
_CODE_SIDE = 4


def sections(codec: Codec) -> Sequence[Section]:
    """All of a run, from its networks as they are at its end."""
    training = codec.networks.training
    codec.networks.eval()
    try:
        with torch.no_grad():
            examples = codec.task.valid if codec.task.test is None else codec.task.test
            what = "validation" if codec.task.test is None else "test"
            score = codec.score(examples)
            found = [_reconstructions(codec, what), _codebook(codec, score, what), _rates(codec, examples, score, what)]
            return [*found, *_samples(codec)]
    finally:
        codec.networks.train(training)


def _reconstructions(codec: Codec, what: str) -> Section:
    inputs = (codec.task.valid if codec.task.test is None else codec.task.test)[:_SHOWN]
    _, found = next(codec.reconstructions(inputs))
    outputs = codec.networks.limited(found.output).cpu()
    blocks = [
        codec.task.show((("input", inputs[part]), ("output", outputs[part])), "")
        for part in (slice(start, start + _COLUMNS) for start in range(0, len(inputs), _COLUMNS))
        if len(inputs[part])
    ]
    return Section(
        title="Reconstructions",
        text=f"Some {what} examples, and what comes back from their codes.",
        blocks=tuple(blocks),
    )


def _codebook(codec: Codec, score: Score, what: str) -> Section:
    histogram_QK = score.counts.histogram()
    blocks: list[Block] = []
    for number, counts_K in enumerate(histogram_QK):
        shares = (counts_K / counts_K.sum().clamp(min=1)).sort(descending=True).values[:_MOST_BARS]
        name = "" if len(histogram_QK) == 1 else f"Stage {number + 1}. "
        shown = "" if len(shares) == len(counts_K) else f" The {len(shares):,} most used of {len(counts_K):,} codes."
        blocks.append(
            BarChart(
                labels=tuple(str(rank) for rank in range(1, len(shares) + 1)),
                values=tuple((100 * shares).tolist()),
                unit="%",
                caption=f"{name}Share of each code in the {what} codes, from the most used on.{shown}",
            )
        )
    order = histogram_QK[0].argsort(descending=True)[:_SHOWN_CODES]
    blocks.append(codec.task.show((("", _decoded_codes(codec, order)),), _code_caption(codec)))
    rows = tuple(
        (number + 1, one.hard_perplexity, one.mass_perplexity, 100 * one.share_in_use)
        for number, one in enumerate(score.usage.stages)
    )
    columns = ("codebook", "hard perplexity", "mass perplexity", "codes in use, %")
    text = (
        "The hard perplexity counts the code of largest share at each position, the mass perplexity the shares themselves: it "
        f"can look full while few codes are ever the largest. There are {histogram_QK.shape[1]:,} codes."
    )
    return Section(title="Codebook", text=text, blocks=(Table(columns=columns, rows=rows), *blocks))


def _code_caption(codec: Codec) -> str:
    staged = codec.networks.blueprint.num_stages is not None
    return "What the decoder makes of one code at all positions, " + (
        "in the first stage alone." if staged and codec.config.quantizer.stages else "from the most used code on."
    )


def _decoded_codes(codec: Codec, chosen: Tensor) -> Tensor:
    """The output for a small map with the same code everywhere, (N, C, *S); without its border, which is of the padding."""
    blueprint, autoencoder = codec.networks.blueprint, codec.networks.autoencoder
    positions = tuple(min(size, _CODE_SIDE) if len(blueprint.sizes) > 1 else size for size in blueprint.positions)
    code_shape = autoencoder.quantizer.code_shape
    chosen = chosen.to(codec.device)
    indices = chosen.view(-1, *[1] * (len(positions) + len(code_shape)))
    if codec.config.quantizer.stages:
        code_shape = (1, *code_shape[1:])
    indices = indices.expand(len(chosen), *positions, *code_shape)
    weights = None
    if _is_mixed(codec):
        weights = torch.zeros(indices.shape, device=codec.device)
        weights[..., 0] = 1
    return codec.networks.limited(autoencoder.decode(Codes(indices, weights))).cpu()


def _rates(codec: Codec, examples: Tensor, score: Score, what: str) -> Section:
    unit, count = codec.task.unit
    per_unit = math.prod(codec.networks.blueprint.positions) / count
    bits = score.usage.bits_per_position
    rows = [("as trained", math.nan if bits is None else bits, score.mse)]
    rows += [(name, bits, _error(codec, examples, index)) for index, (name, bits) in enumerate(_cheaper(codec))]
    if not _is_mixed(codec):
        entropy = sum(math.log2(max(one.hard_perplexity, 1)) for one in score.usage.stages)
        rows.append(("as trained, at the entropy of its codes", entropy, score.mse))
    name, _ = codec.task.decibels
    table = Table(
        columns=("codes", "bits a position", f"bits a {unit}", "mse", f"{name}, dB"),
        rows=tuple((label, rate, rate * per_unit, mse, codec.decibels(mse, score.power)) for label, rate, mse in rows),
        caption="An entropy coder that knows how often each code is used comes near to the entropy; it is not built here.",
    )
    lines = {label: ([rate * per_unit], [mse]) for label, rate, mse in rows if math.isfinite(rate)}
    chart = (LineChart(x_label=f"bits a {unit}", y_label="mse", lines=lines),) if lines else ()
    return Section(
        title="Rate and distortion",
        text=f"Error on the {what} examples against the bits that their codes take.",
        blocks=(table, *chart),
    )


def _is_mixed(codec: Codec) -> bool:
    from featherlight.recipes.vq.quantizers import QUANTIZERS

    return QUANTIZERS[codec.config.quantizer.kind].mixed


def _cheaper(codec: Codec) -> list[tuple[str, float]]:
    """Ways to store fewer bits that the same networks can decode, and how many."""
    settings, blueprint = codec.config.quantizer, codec.networks.blueprint
    if settings.stages:
        each = codec.networks.autoencoder.quantizer.bits_per_position / settings.stages
        return [(f"first {count} of {settings.stages} stages", count * each) for count in range(1, settings.stages)]
    return [("the code of largest share alone", math.log2(blueprint.num_codes))] if _is_mixed(codec) else []


def _error(codec: Codec, examples: Tensor, number: int) -> float:
    """The mean squared error of the `number`-th of the cheaper ways."""
    autoencoder = codec.networks.autoencoder
    errors = []
    for x, found in codec.reconstructions(examples):
        codes = found.quantized.codes
        if codec.config.quantizer.stages:
            axis = codes.indices.ndim - len(autoencoder.quantizer.code_shape)
            kept = [None if one is None else one.narrow(axis, 0, number + 1) for one in codes]
            fewer = Codes(*kept)  # pyright: ignore[reportArgumentType]
        else:
            assert codes.weights is not None, "mixed codes have shares"
            largest = codes.weights.argmax(-1, keepdim=True)
            fewer = Codes(codes.indices, torch.zeros_like(codes.weights).scatter_(-1, largest, 1.0))
        errors.append(squared_error(codec.networks.limited(autoencoder.decode(fewer)), x))
    return float(torch.cat(errors).mean())


def _samples(codec: Codec) -> Iterator[Section]:
    settings = codec.config.prior
    if codec.networks.prior is None or settings is None:
        return
    drawn = codec.networks.sample(settings.samples, seed=codec.config.seed, temperature=settings.temperature).cpu()
    rows = [("", drawn[start : start + _COLUMNS]) for start in range(0, len(drawn), _COLUMNS)]
    yield Section(
        title="Samples of the prior",
        text="Drawn code by code by the prior, and decoded. None was chosen.",
        blocks=(codec.task.show(rows, f"At a temperature of {settings.temperature:g}."),),
    )
