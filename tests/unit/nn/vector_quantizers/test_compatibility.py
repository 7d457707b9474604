"""The peer's options and weights give the peer's outputs."""

from typing import Any

import pytest
import torch
from vector_quantize_pytorch import VectorQuantize

from featherlight.nn.vector_quantizers import ProjectedQuantizer, VectorQuantizer, load_vector_quantize

_CASES: list[dict[str, Any]] = [
    {},
    {"decay": 0.9, "rotation_trick": False, "commitment_weight": 0.25},
    {"use_cosine_sim": True},
    {"kmeans_init": True, "accept_image_fmap": True},
    {"channel_last": False, "learnable_codebook": True, "ema_update": False},
    {"heads": 2, "codebook_dim": 4},
    {"heads": 2, "codebook_dim": 4, "separate_codebook_per_head": True, "use_cosine_sim": True},
    {"heads": 2, "separate_codebook_per_head": True},
    {"codebook_dim": 3, "accept_image_fmap": True},
]


@pytest.mark.parametrize("options", _CASES, ids=str)
def test_outputs_gradients_and_statistics_are_the_peers(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    peer = VectorQuantize(dim=8, codebook_size=32, **options)
    ours = VectorQuantizer.from_options(dim=8, codebook_size=32, **options)
    shape = (2, 8, 5, 6) if options.get("accept_image_fmap") else (2, 30, 8)
    if options.get("channel_last") is False:
        shape = (2, 8, 30)
    if options.get("kmeans_init"):
        peer(torch.randn(shape))
    load_vector_quantize(ours, peer.state_dict())
    for training in (True, True, False):
        peer.train(training)
        ours.train(training)
        x = torch.randn(shape)
        ours_x, peer_x = x.clone().requires_grad_(), x.clone().requires_grad_()
        values, codes, aux_loss = ours(ours_x)
        expected, indices, expected_loss = peer(peer_x)
        assert torch.equal(codes.indices, indices)
        torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-6)
        if training:
            scale = 2 if options.get("learnable_codebook") else 1
            torch.testing.assert_close(aux_loss, scale * expected_loss, rtol=1e-5, atol=1e-6)
            ((values * x).sum() + aux_loss).backward()
            ((expected * x).sum() + expected_loss).backward()
            torch.testing.assert_close(ours_x.grad, peer_x.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours.codes_to_values(codes), expected, rtol=1e-6, atol=1e-6)
    if options.get("learnable_codebook"):
        torch.testing.assert_close(ours.codebook.weight.grad, peer._codebook.embed.grad[0], rtol=1e-4, atol=1e-6)
    again = VectorQuantizer.from_options(dim=8, codebook_size=32, **options).eval()
    load_vector_quantize(again, peer.state_dict())
    torch.testing.assert_close(again(x).values, values, rtol=1e-6, atol=1e-6)


def test_masked_positions_are_left_out_as_the_peer_does() -> None:
    torch.manual_seed(0)
    peer = VectorQuantize(dim=8, codebook_size=32, rotation_trick=False)
    ours = VectorQuantizer.from_options(dim=8, codebook_size=32, rotation_trick=False)
    load_vector_quantize(ours, peer.state_dict())
    for _ in range(2):
        x, mask = torch.randn(3, 20, 8), torch.rand(3, 20) > 0.4
        values, codes, aux_loss = ours(x, mask=mask)
        expected, indices, expected_loss = peer(x, mask=mask)
        assert torch.equal(codes.indices, indices)
        torch.testing.assert_close(values, expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(aux_loss, expected_loss, rtol=1e-5, atol=1e-6)


def test_what_has_no_counterpart_gets_a_sentence() -> None:
    for options, message in (
        ({"codebook_sizes": 3}, r"`codebook_sizes` is not an option .* Known are dim, codebook_size"),
        ({"affine_param": True}, r"`affine_param=True` has no counterpart here\. Leave it away\."),
        ({"freeze_codebook": True}, r"no counterpart here\. Call `eval\(\)`"),
        ({"use_cosine_sim": True, "learnable_codebook": True}, "are not combined"),
        ({"learnable_codebook": True, "ema_update": True}, "either by moving averages or by gradients"),
    ):
        with pytest.raises(ValueError, match=message):
            VectorQuantizer.from_options(dim=8, codebook_size=32, **options)
    quantizer = VectorQuantizer.from_options(dim=8, codebook_size=32, orthogonal_reg_weight=0.0, codebook_dim=4)
    assert isinstance(quantizer, ProjectedQuantizer)
    with pytest.raises(ValueError, match=r"missing project_in\.bias"):
        load_vector_quantize(quantizer, VectorQuantize(dim=8, codebook_size=32).state_dict())
    with pytest.raises(ValueError, match=r"`_codebook\.embed` has the shape \(1, 16, 4\)"):
        load_vector_quantize(quantizer, VectorQuantize(dim=8, codebook_size=16, codebook_dim=4).state_dict())
