"""Fake quantization one number at a time in float64, with the gradients as the papers write them."""

import math


def rounded(x, scale, zero_point, low, high):
    """The value, its derivative by x and its derivative by the scale (Esser et al. 2020, equations 1 to 3)."""
    units = x / scale
    floor = math.floor(units)
    rest = units - floor
    nearest = floor + (rest > 0.5 or (rest == 0.5 and floor % 2 == 1))
    code = nearest + zero_point
    if code < low:
        return (low - zero_point) * scale, 0.0, low - zero_point
    if code > high:
        return (high - zero_point) * scale, 0.0, high - zero_point
    return nearest * scale, 1.0, nearest - units


def corrected_fold(conv, norm, x, quantize):
    """A convolution folded with its BatchNorm in training (Krishnamoorthi 2018, section 3.2.2): two convolutions, correction.

    The weights are folded with the running deviation, rounded, and what comes out is corrected to the deviation of the batch.
    The statistics of the batch are those of the rounded convolution.
    """
    running = (norm.running_var + norm.eps).sqrt()
    factor = (norm.weight / running).view(-1, 1, 1, 1)
    folded = quantize(conv.weight * factor)
    unfolded = conv._conv_forward(x, folded / factor, None)
    mean = unfolded.mean((0, 2, 3))
    deviation = (unfolded.var((0, 2, 3), correction=0) + norm.eps).sqrt()
    correction = (running / deviation).view(-1, 1, 1)
    shift = (norm.bias - norm.weight * mean / deviation).view(-1, 1, 1)
    return conv._conv_forward(x, folded, None) * correction + shift
