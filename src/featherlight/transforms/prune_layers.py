"""The weights that transforms act on: which they are, whether they can be, and how a parametrization is baked in."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

LAYERS = (
    nn.Linear,
    nn.Bilinear,
    nn.Embedding,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
"""Layers whose `weight` and `bias` transforms act on; norms and what a module of another kind holds are left alone."""


@dataclass(frozen=True, kw_only=True)
class WeightSite:
    """A tensor of a layer.

    Attributes:
        name: in the model, such as "features.1.weight".
        module: the layer.
        own: the tensor's name in it.
    """

    name: str
    module: nn.Module
    own: str

    @property
    def tensor(self) -> Tensor:
        """What the layer computes with: what all parametrizations make of it."""
        return getattr(self.module, self.own)

    @property
    def parameter(self) -> nn.Parameter:
        """What is trained of it."""
        chain = self.chain
        found = getattr(self.module, self.own) if chain is None else chain.original
        assert isinstance(found, nn.Parameter), "only parameters are sites"
        return found

    def before(self, kind: type[nn.Module]) -> Tensor:
        """What a parametrization of a kind is handed."""
        value: Tensor = self.parameter
        for one in self.chain or ():
            if type(one) is kind:
                break
            value = one(value)
        return value

    @property
    def chain(self) -> parametrize.ParametrizationList | None:
        """Its parametrizations; None without any."""
        if not parametrize.is_parametrized(self.module, self.own):
            return None
        found = self.module.get_submodule(f"parametrizations.{self.own}")
        assert isinstance(found, parametrize.ParametrizationList), "torch keeps them so"
        return found


def weight_sites(model: nn.Module, patterns: Sequence[str] = ("*.weight", "weight")) -> dict[str, WeightSite]:
    """The tensors of a model that fit one of some patterns, by name.

    Args:
        model: any module.
        patterns: of names, such as "features.*.weight"; `*` fits anything. Biases fit "*.bias".

    Raises:
        ValueError: a pattern fits nothing, or the model has no layer, or a tensor is tied, not finite or not real.
    """
    found = {site.name: site for site in _all_sites(model)}
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no linear, convolutional or embedding layer, so there is nothing to prune or share. "
            "Pass the network itself."
        )
    usual = ("*.weight", "weight", "*.bias", "bias")
    for pattern in patterns:
        if pattern not in usual and not any(fnmatchcase(name, pattern) for name in found):
            near = difflib.get_close_matches(pattern, list(found), n=3, cutoff=0.3) or list(found)[:3]
            raise ValueError(
                f"the pattern {pattern!r} fits none of the {len(found)} weights of {type(model).__name__}; near it are "
                f"{', '.join(near)}. `*` stands for anything."
            )
    chosen = {name: site for name, site in found.items() if any(fnmatchcase(name, one) for one in patterns)}
    if not chosen:
        raise ValueError(f"none of {', '.join(found)} fits one of {list(patterns)}. `*` stands for anything.")
    _check(model, chosen)
    return chosen


def install(sites: Mapping[str, WeightSite], made: Mapping[str, nn.Module]) -> None:
    """Registers a parametrization at each site, behind those that it has.

    Raises:
        ValueError: one of the same kind is there already.
    """
    for name, site in sites.items():
        if any(type(one) is type(made[name]) for one in site.chain or ()):
            raise ValueError(
                f"`{name}` is under a transform of this kind already, so it would be done twice. Prepare a model once, and "
                "`convert` it before another."
            )
    for name, site in sites.items():
        parametrize.register_parametrization(site.module, site.own, made[name], unsafe=True)


@torch.no_grad()
def bake(site: WeightSite, kind: type[nn.Module]) -> None:
    """Writes what the layer computes with into its parameter, and takes the parametrization of a kind away.

    Raises:
        ValueError: another transform of the tensor has to be converted first.
    """
    chain = site.chain
    assert chain is not None, "only what is installed is baked"
    own = next(number for number, one in enumerate(chain) if type(one) is kind)
    rest, value = list(chain)[own + 1 :], site.tensor.detach()
    if rest and not _is_settled(rest, value):
        raise ValueError(
            f"`{site.name}` went through {type(rest[-1]).__name__} after this transform, which must be converted first. "
            "Convert in the opposite order of `prepare`, as TransformStack does."
        )
    if own == 0:
        parametrize.remove_parametrizations(site.module, site.own, leave_parametrized=True)
        held = site.module._parameters  # removal puts the weight last, and optimizers know parameters by their order
        held.update({own: held.pop(own) for own in ("weight", "bias") if own in held})
        return
    site.parameter.copy_(value)
    del chain[own]


def _is_settled(rest: Sequence[nn.Module], value: Tensor) -> bool:
    """Whether parametrizations return what they return whatever they are handed, and nothing in them is trained."""
    other = value + 1
    for one in rest:
        value, other = one(value), one(other)
    return torch.equal(value, other) and not any(True for one in rest for _ in one.parameters())


def installed(model: nn.Module, kind: type[nn.Module]) -> dict[str, WeightSite]:
    """The sites under a parametrization of a kind."""
    found = {}
    for site in _all_sites(model):
        if any(type(one) is kind for one in site.chain or ()):
            found[site.name] = site
    return found


def _all_sites(model: nn.Module) -> list[WeightSite]:
    found = []
    for prefix, module in model.named_modules():
        if isinstance(module, LAYERS):
            for own in ("weight", "bias"):
                if parametrize.is_parametrized(module, own) or module._parameters.get(own) is not None:
                    found.append(WeightSite(name=f"{prefix}.{own}".removeprefix("."), module=module, own=own))
    return found


def _check(model: nn.Module, sites: Mapping[str, WeightSite]) -> None:
    """Raises ValueError for a tensor that is tied or holds what is no number."""
    uses: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        uses.setdefault(id(parameter), []).append(name)
    for name, site in sites.items():
        parameter = site.parameter
        if len(names := uses[id(parameter)]) > 1:
            raise ValueError(
                f"`{name}` is tied: one tensor is {' and '.join(names)}, and a transform of the one would break the tie. Leave "
                "it out by naming the other layers, or untie it."
            )
        if not parameter.dtype.is_floating_point:
            raise ValueError(f"`{name}` is of {parameter.dtype}, and weights must be floats. Load the float model.")
        if not torch.isfinite(parameter).all():
            raise ValueError(
                f"`{name}` holds NaN or infinite weights, which have no order and no mean. Train again with a lower rate."
            )
