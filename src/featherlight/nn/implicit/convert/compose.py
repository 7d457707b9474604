"""Two implicit models as one.

Legend of shapes: S numbers of a state, I inputs, Y outputs; 1 and 2 are the models'.
"""

import torch

from featherlight.nn.implicit.convert.sparse import product, stacked, times_vector, total
from featherlight.nn.implicit.convert.system import ImplicitSystem


def cascade(first: ImplicitSystem, second: ImplicitSystem) -> ImplicitSystem:
    """The second model on the outputs of the first: y = y2(y1(u)); its states stand before the first's.

    Strictly triangular if both are.

    Raises:
        ValueError: the first has another number of outputs than the second has inputs.

    Source: El Ghaoui et al. 2021, section 3.4.
    """
    if first.c.shape[0] != second.b.shape[1]:
        raise ValueError(
            f"the first model has {first.c.shape[0]} outputs and the second {second.b.shape[1]} inputs; they must be equal."
        )
    return ImplicitSystem(
        a=stacked([[second.a, product(second.b, first.c)], [None, first.a]]),
        b=stacked([[product(second.b, first.d)], [first.b]]),
        c=stacked([[second.c, product(second.d, first.c)]]),
        d=product(second.d, first.d),
        state_bias=torch.cat((second.state_bias + times_vector(second.b, first.output_bias), first.state_bias)),
        output_bias=second.output_bias + times_vector(second.d, first.output_bias),
        blocks=[*second.blocks, *first.blocks],
    )


def parallel(first: ImplicitSystem, second: ImplicitSystem) -> ImplicitSystem:
    """Both models on the same inputs: y = (y1(u), y2(u)).

    Raises:
        ValueError: different numbers of inputs.
    """
    _check_inputs(first, second)
    return ImplicitSystem(
        a=stacked([[first.a, None], [None, second.a]]),
        b=stacked([[first.b], [second.b]]),
        c=stacked([[first.c, None], [None, second.c]]),
        d=stacked([[first.d], [second.d]]),
        state_bias=torch.cat((first.state_bias, second.state_bias)),
        output_bias=torch.cat((first.output_bias, second.output_bias)),
        blocks=[*first.blocks, *second.blocks],
    )


def summed(first: ImplicitSystem, second: ImplicitSystem) -> ImplicitSystem:
    """Both models on the same inputs: y = y1(u) + y2(u).

    Raises:
        ValueError: different numbers of inputs or outputs.
    """
    _check_inputs(first, second)
    if first.c.shape[0] != second.c.shape[0]:
        raise ValueError(f"models with {first.c.shape[0]} and {second.c.shape[0]} outputs cannot be summed.")
    return ImplicitSystem(
        a=stacked([[first.a, None], [None, second.a]]),
        b=stacked([[first.b], [second.b]]),
        c=stacked([[first.c, second.c]]),
        d=total(first.d, second.d),
        state_bias=torch.cat((first.state_bias, second.state_bias)),
        output_bias=first.output_bias + second.output_bias,
        blocks=[*first.blocks, *second.blocks],
    )


def _check_inputs(first: ImplicitSystem, second: ImplicitSystem) -> None:
    if first.b.shape[1] != second.b.shape[1]:
        raise ValueError(f"models of {first.b.shape[1]} and {second.b.shape[1]} inputs cannot share them.")
