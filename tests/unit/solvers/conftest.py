"""Both ways in which rows are solved on a CPU."""

import pytest

from featherlight.solvers.simplex_qp import compiled


@pytest.fixture(params=["kernel", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The compiled kernels, or torch's batched operations."""
    if request.param == "kernel" and not compiled.kernels_installed():
        pytest.skip("numba is not installed")
    if request.param == "torch":
        monkeypatch.setattr(compiled, "kernels_installed", lambda: False)
    return request.param
