"""The largest whole number whose predicted peak fits."""

from collections.abc import Callable


def largest_that_fits(peak: Callable[[int], int], budget: int, most: int) -> int | None:
    """The largest number in [1, most] whose peak is no more than the budget; None if not even one fits.

    Args:
        peak: bytes for a number, such as of rows; never falls as it grows.
        budget: bytes.
        most: the largest number that is of use.

    Cost: peaks of a few numbers: a line through two known ones says where to look, and halving goes on from there.
    """
    if most < 1:
        raise ValueError(f"`most` must be at least 1; got {most}.")
    known = {1: peak(1)}
    if known[1] > budget:
        return None
    if most == 1:
        return 1
    known[most] = peak(most)
    if known[most] <= budget:
        return most
    fits, fails, by_line = 1, most, True
    while fails - fits > 1:
        rise = (known[fails] - known[fits]) / (fails - fits)
        guess = int(fits + (budget - known[fits]) / rise) if by_line and rise > 0 else (fits + fails) // 2
        guess = min(max(guess, fits + 1), fails - 1)
        known[guess] = peak(guess)
        fits, fails = (guess, fails) if known[guess] <= budget else (fits, guess)
        by_line = not by_line
    return fits
