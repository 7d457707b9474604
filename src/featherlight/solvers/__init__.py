"""Functions of tensors that solve a problem; they know no Module."""

from featherlight.solvers.linear_head import LinearHead, fit_classifier, fit_regression

__all__ = ["LinearHead", "fit_classifier", "fit_regression"]
