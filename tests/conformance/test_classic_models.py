"""One contract for every network that is built from parts: norms, sizes, gradients, saves, evaluation, bad input."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from featherlight.nn.models import (
    GPT2_SMALL,
    SMALL_STEM,
    AlexNet,
    BatchNorm,
    BlockShape,
    CaffeLeNet,
    CodePrior,
    ConvDecoder,
    ConvEncoder,
    DenoisingAutoencoder,
    DenseAutoencoder,
    EncoderDecoder,
    GaussianNoise,
    Gpt,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    LeNet5,
    LeNet300,
    LstmCell,
    MaskingNoise,
    MobileNet,
    NoNorm,
    Norm,
    PlainCell,
    Projection,
    RecurrentClassifier,
    RecurrentForecaster,
    RecurrentLanguageModel,
    RecurrentShape,
    ResNet,
    Rotary,
    Sinusoidal,
    VisionTransformer,
    generate,
    resnet8,
    resnet18,
    resnet20,
)

NORMS = {
    "batch": BatchNorm(),
    "instance": InstanceNorm(),
    "layer": LayerNorm(),
    "group": GroupNorm(groups=2),
    "none": NoNorm(),
}
SMALL = BlockShape(width=16, num_heads=2, hidden=24)
RECURRENT = RecurrentShape(width=12, num_layers=2)
GREY, COLOUR = (torch.rand(3, 1, 28, 28),), (torch.rand(3, 3, 32, 32),)
TOKENS = torch.arange(30).view(3, 10) % 7
LARGE: dict[str, Any] = {"width": 768, "num_heads": 12}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A network.

    Attributes:
        make: with a norm and a share of dropout.
        inputs: three examples.
        output: shape of what it returns for them.
        bad: another input, and the part of the sentence that names it.
        no_instance: whether instance normalization has nothing to be over, or would show what is to be predicted.
    """

    make: Callable[[Norm, float], nn.Module]
    inputs: tuple[Tensor, ...]
    output: tuple[int, ...]
    bad: tuple[tuple[Tensor, ...], str] | None = None
    no_instance: bool = False


def shaped(norm: Norm, dropout: float) -> BlockShape:
    return replace(SMALL, norm=norm, dropout=dropout)


def recurrent(norm: Norm, dropout: float, cell: Any = LstmCell()) -> RecurrentShape:  # noqa: B008
    return replace(RECURRENT, norm=norm, dropout=dropout, cell=cell)


SEQUENCE = torch.rand(3, 6, 5)
TABLE: dict[str, Row] = {
    "LeNet300": Row(
        make=lambda norm, p: LeNet300(norm=norm, dropout=p),
        inputs=GREY,
        output=(3, 10),
        bad=(COLOUR, "784 pixels in all"),
        no_instance=True,
    ),
    "LeNet5": Row(
        make=lambda norm, p: LeNet5(norm=norm, dropout=p), inputs=GREY, output=(3, 10), bad=(COLOUR, "28x28 pixels")
    ),
    "LeNet5 of 43": Row(
        make=lambda norm, p: LeNet5(43, in_channels=3, margin=0, norm=norm, dropout=p), inputs=COLOUR, output=(3, 43)
    ),
    "CaffeLeNet": Row(
        make=lambda norm, p: CaffeLeNet(norm=norm, dropout=p), inputs=GREY, output=(3, 10), bad=(COLOUR, "28x28 pixels")
    ),
    "AlexNet": Row(
        make=lambda norm, p: AlexNet(5, small_images=True, widths=(8, 8, 8, 8, 8), hidden=12, norm=norm, dropout=p),
        inputs=COLOUR,
        output=(3, 5),
        bad=((torch.rand(2, 3, 64, 64),), "32x32 pixels"),
    ),
    "ResNet-8": Row(make=lambda norm, p: resnet8(5, norm=norm, dropout=p), inputs=COLOUR, output=(3, 5)),
    "ResNet, pre-activation": Row(
        make=lambda norm, p: ResNet(
            5, widths=(4, 8), blocks=(2, 1), pre_activation=True, shortcut=Projection(), norm=norm, dropout=p
        ),
        inputs=COLOUR,
        output=(3, 5),
    ),
    "MobileNet": Row(
        make=lambda norm, p: MobileNet(5, blocks=((16, 2), (16, 1)), norm=norm, dropout=p), inputs=COLOUR, output=(3, 5)
    ),
    "Xception": Row(
        make=lambda norm, p: MobileNet(5, blocks=((16, 2), (16, 1)), residual=True, norm=norm, dropout=p),
        inputs=COLOUR,
        output=(3, 5),
    ),
    "VisionTransformer": Row(
        make=lambda norm, p: VisionTransformer(5, patch=8, shape=shaped(norm, p), num_blocks=2),
        inputs=COLOUR,
        output=(3, 5),
        bad=(GREY, "32x32 pixels"),
    ),
    "Gpt": Row(
        make=lambda norm, p: Gpt(7, context=10, shape=shaped(norm, p), num_blocks=2),
        inputs=(TOKENS,),
        output=(3, 10, 7),
        bad=((TOKENS.repeat(1, 2),), "at most 10 tokens"),
        no_instance=True,
    ),
    "EncoderDecoder": Row(
        make=lambda norm, p: EncoderDecoder(7, max_length=10, shape=shaped(norm, p), num_blocks=2),
        inputs=(TOKENS, TOKENS[:, :6]),
        output=(3, 6, 7),
        bad=((TOKENS.repeat(1, 2), TOKENS), "at most 10 tokens"),
        no_instance=True,
    ),
    "RecurrentClassifier": Row(
        make=lambda norm, p: RecurrentClassifier(4, num_features=5, shape=recurrent(norm, p)),
        inputs=(SEQUENCE, torch.tensor([6, 1, 3])),
        output=(3, 4),
        bad=((SEQUENCE, torch.tensor([6, 0, 3])), "between 1 and the 6 positions"),
    ),
    "RecurrentLanguageModel": Row(
        make=lambda norm, p: RecurrentLanguageModel(7, shape=recurrent(norm, p, PlainCell())),
        inputs=(TOKENS,),
        output=(3, 10, 7),
        no_instance=True,
    ),
    "RecurrentForecaster": Row(
        make=lambda norm, p: RecurrentForecaster(2, num_features=5, shape=recurrent(norm, p)),
        inputs=(SEQUENCE,),
        output=(3, 6, 2),
        no_instance=True,
    ),
    "convolutional autoencoder": Row(
        make=lambda norm, p: nn.Sequential(
            ConvEncoder(in_channels=1, dim=4, width=8, block_width=4, norm=norm, dropout=p),
            ConvDecoder(out_channels=1, dim=4, width=8, block_width=4, norm=norm, dropout=p),
        ),
        inputs=GREY,
        output=(3, 1, 28, 28),
    ),
    "DenoisingAutoencoder": Row(
        make=lambda norm, p: DenoisingAutoencoder(
            DenseAutoencoder((1, 28, 28), widths=(16, 8, 4), norm=norm, dropout=p), MaskingNoise(0.5)
        ),
        inputs=GREY,
        output=(3, 1, 28, 28),
        bad=(COLOUR, "examples of the sizes"),
        no_instance=True,
    ),
}
SIZES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "LeNet-300-100": (LeNet300, 266_610),
    "LeNet-5 of 1998": (LeNet5, 60_000),
    "LeNet-5 of Caffe": (CaffeLeNet, 430_500 + 580),
    "AlexNet": (AlexNet, 60_965_224),
    "ResNet-8": (resnet8, 75_290),
    "ResNet-20": (resnet20, 269_722),
    "ResNet-20, pre-activation": (lambda: resnet20(pre_activation=True), 269_722),
    "ResNet-18": (resnet18, 11_689_512),
    "ResNet-18, 32x32": (lambda: resnet18(10, stem=SMALL_STEM), 11_173_962),
    "MobileNet": (MobileNet, 4_231_976),
    "ViT-B/16": (
        lambda: VisionTransformer(1000, side=224, patch=16, shape=BlockShape(**LARGE), num_blocks=12),
        86_567_656,
    ),
    "Transformer base": (lambda: EncoderDecoder(37_000, max_length=1024), 63_082_496),
    "GPT-2 small": (lambda: Gpt(50_257, context=1024, shape=GPT2_SMALL, num_blocks=12), 124_439_808),
    "autoencoder of 2006": (lambda: DenseAutoencoder((1, 28, 28)), 2_837_314),
}


def ready(row: Row, norm: Norm, dropout: float = 0.0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return row.make(norm, dropout)


@pytest.mark.parametrize("name", SIZES)
def test_the_numbers_of_parameters_are_those_of_the_papers(name):
    make, count = SIZES[name]
    with torch.device("meta") if name != "LeNet-5 of 1998" else torch.device("cpu"):
        assert sum(parameter.numel() for parameter in make().parameters()) == count


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("name", TABLE)
def test_every_network_learns_with_every_norm_and_comes_back_from_its_weights(name, kind):
    row, norm = TABLE[name], NORMS[kind]
    if kind == "instance" and row.no_instance:
        with pytest.raises(ValueError, match="instance normalization is over"):
            ready(row, norm)
        return
    model = ready(row, norm, 0.3).train()
    output = model(*row.inputs)
    assert output.shape == row.output
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model(*row.inputs).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
    again = ready(row, norm)
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        expected = model.eval()(*row.inputs)
        torch.testing.assert_close(again.eval()(*row.inputs), expected, rtol=0, atol=0)
        torch.testing.assert_close(model(*row.inputs), expected, rtol=0, atol=0)
        one = [value[1:2] for value in row.inputs]
        torch.testing.assert_close(model(*one), expected[1:2])


@pytest.mark.parametrize("name", [name for name, row in TABLE.items() if row.bad])
def test_wrong_input_gets_a_sentence(name):
    row = TABLE[name]
    assert row.bad is not None
    with pytest.raises(ValueError, match=row.bad[1]):
        ready(row, NoNorm())(*row.bad[0])


@pytest.mark.parametrize("positions", [Sinusoidal(), Rotary()], ids=["sinusoidal", "rotary"])
@pytest.mark.parametrize("norm_first", [True, False], ids=["norm first", "norm last"])
def test_tokens_one_at_a_time_are_told_what_all_at_once_are(positions, norm_first):
    shape = replace(SMALL, norm_first=norm_first)
    gpt = Gpt(7, context=10, shape=shape, num_blocks=2, positions=positions).eval()
    recurrent_model = RecurrentLanguageModel(7, shape=RECURRENT, tied=True).eval()
    both = EncoderDecoder(7, max_length=10, shape=shape, num_blocks=2, positions=positions).eval()
    real = torch.ones(3, 10, dtype=torch.bool)
    real[1, 4:] = False
    with torch.no_grad():
        models: tuple[Any, ...] = (gpt, recurrent_model)
        for model in models:
            state, parts = model.start(3), []
            for part in TOKENS.split([1, 4, 2, 3], 1):
                logits, state = model.advance(part, state)
                parts.append(logits)
            torch.testing.assert_close(torch.cat(parts, 1), model(TOKENS))
        state = both.start(TOKENS, real_BS=real)
        parts = [both.advance(part, state) for part in TOKENS.split([3, 1, 6], 1)]
        whole = both(TOKENS, TOKENS, real_BS=real)
        torch.testing.assert_close(torch.cat(parts, 1), whole)
        changed = TOKENS.clone()
        changed[1, 4:] = 0
        torch.testing.assert_close(both(changed, TOKENS, real_BS=real), whole)
        full = gpt.advance(TOKENS, gpt.start(3))[1]
        with pytest.raises(ValueError, match="at most 10 tokens"):
            gpt.advance(TOKENS[:, :1], full)
        assert full[0].length == 10


@pytest.mark.parametrize("name", ["Gpt", "RecurrentLanguageModel", "EncoderDecoder", "CodePrior"])
def test_no_token_sees_a_later_one(name):
    model = ready(TABLE[name], LayerNorm()) if name in TABLE else CodePrior(slots=(7,), num_positions=10, width=8)
    start = (TOKENS,) if name == "EncoderDecoder" else ()
    changed = TOKENS.clone()
    changed[:, 6:] = 0

    def logits(tokens: Tensor) -> Tensor:
        return model(tokens[:, :, None])[0][:, :7] if name == "CodePrior" else model(*start, tokens)[:, :6]

    with torch.no_grad():
        torch.testing.assert_close(logits(changed), logits(TOKENS))


def test_rotary_scores_go_by_distance():
    turn = Rotary().turned(50, 8)
    query, key = torch.rand(1, 1, 1, 8), torch.rand(1, 1, 1, 8)
    scores = [(turn(query, start + 3) * turn(key, start)).sum() for start in (0, 7, 40)]
    torch.testing.assert_close(torch.stack(scores), scores[0].expand(3))


def test_tokens_are_drawn_past_the_context_and_the_likeliest_are_what_greedy_takes():
    gpt: Any = ready(TABLE["Gpt"], LayerNorm()).eval()
    one, other = (
        generate(gpt, TOKENS[:, :4], 23, generator=torch.Generator().manual_seed(5), top=top) for top in (3, 3)
    )
    assert one.shape == (3, 23)
    assert torch.equal(one, other)
    likeliest = generate(gpt, TOKENS[:, :4], 1, generator=torch.Generator(), temperature=0)
    assert torch.equal(likeliest[:, 0], gpt(TOKENS[:, :4])[:, -1].argmax(-1))
    both: Any = ready(TABLE["EncoderDecoder"], LayerNorm()).eval()
    written = both.greedy(TOKENS, begin=0, end=1, max_length=5)
    told = torch.cat([torch.zeros(3, 1, dtype=torch.int64), written[:, :-1]], 1)
    plain = both(TOKENS, told).argmax(-1)
    has_ended = (written == 1).cumsum(1) - (written == 1).long() > 0
    assert torch.equal(written, plain.masked_fill(has_ended, 1))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: GroupNorm(groups=3).maps(8), "groups.*must divide.*3 for 8"),
        (lambda: GroupNorm(groups=0), "at least 1; got 0"),
        (lambda: BlockShape(width=10, num_heads=3), "must divide `width`; got 3 heads"),
        (lambda: Rotary().turned(5, 3), "an even number of them; got 3"),
        (lambda: LeNet5(100), "2 to 84 classes"),
        (lambda: LeNet5(3, codes=torch.ones(2, 84)), "for each of 3 classes"),
        (lambda: AlexNet(widths=(3, 4, 4, 4, 4)), "five even numbers"),
        (lambda: ResNet(3, widths=(4,), blocks=(1, 2)), "a number of at least 1 for each stage"),
        (lambda: ResNet(3, widths=(8, 4), blocks=(1, 1)), "padded up but not down"),
        (lambda: VisionTransformer(3, side=30, shape=SMALL, num_blocks=1), "a multiple of `patch`"),
        (lambda: CaffeLeNet(side=12), "at least 16 pixels"),
        (lambda: MobileNet(3, multiplier=0), "`multiplier` be positive"),
        (lambda: DenseAutoencoder((1, 0)), "numbers of at least 1"),
        (lambda: MaskingNoise(1.0), "must lie in"),
        (lambda: GaussianNoise(-1.0), "finite number of at least 0"),
        (lambda: RecurrentShape(width=0), "at least 1; got 0"),
    ],
)
def test_parts_that_do_not_fit_get_a_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_noise_is_of_training_alone_and_of_the_share_that_is_asked_for():
    x = torch.ones(50, 100)
    for noise in (MaskingNoise(0.3), GaussianNoise(0.1)):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            disturbed = noise.train()(x)
        assert torch.equal(noise.eval()(x), x)
        assert not torch.equal(disturbed, x)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        masked = MaskingNoise(0.3).train()(x)
    torch.testing.assert_close(masked, (masked != 0).float())
    assert abs(float((masked == 0).float().mean()) - 0.3) < 0.05
