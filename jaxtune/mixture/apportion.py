"""Exact arithmetic on shares: decimal-faithful fractions, roots, water-filling under caps, largest remainders.

Fractions and correctly rounded decimals only, so a result is the same on every platform and Python version.
"""

import decimal
import math
from collections.abc import Mapping
from fractions import Fraction

Number = float | int

_WORKING = decimal.Context(prec=64, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)
_KEPT = decimal.Context(prec=40, Emax=decimal.MAX_EMAX, Emin=decimal.MIN_EMIN)


def as_fraction(value: Number | Fraction) -> Fraction:
    """The number as it was written: 2.3 is 23/10, not the float nearest to it, so 2.3 * 10 examples are 23."""
    return Fraction(value) if isinstance(value, int | Fraction) else Fraction(repr(float(value)))


def root(value: Fraction, degree: Fraction) -> Fraction:
    """value ** (1 / degree) to 40 digits; exact where the root has no more digits than that."""
    if degree == 1:
        return value
    logarithm = _WORKING.ln(_decimal(value))
    return Fraction(_KEPT.plus(_WORKING.exp(_WORKING.multiply(logarithm, _decimal(1 / degree)))))


def normalised(values: Mapping[str, Fraction]) -> dict[str, Fraction]:
    """Values divided by their sum."""
    total = sum(values.values(), Fraction(0))
    return {name: value / total for name, value in values.items()}


def water_fill(shares: Mapping[str, Fraction], caps: Mapping[str, int], total: Fraction) -> dict[str, Fraction]:
    """x = min(cap, lambda * share) with lambda solving sum x = total; names without a cap are unlimited.

    The Kullback-Leibler projection of the shares onto the capped simplex: caps are met in the order of cap / share
    until lambda fits the rest. Where the caps hold less than the total, everything is at its cap.
    """
    active = {name: share for name, share in shares.items() if share > 0}
    left, mass = total, sum(active.values(), Fraction(0))
    filled = dict.fromkeys(shares, Fraction(0))
    for name in sorted(caps.keys() & active.keys(), key=lambda n: (caps[n] / active[n], n)):
        if caps[name] * mass > left * active[name]:
            break
        filled[name] = Fraction(caps[name])
        left, mass = left - caps[name], mass - active.pop(name)
    return filled | {name: left * share / mass for name, share in active.items()}


def largest_remainder(expected: Mapping[str, Fraction]) -> dict[str, int]:
    """Floors, then one more for the largest remainders (ties by name); the sum is floor(sum of expected).

    No integer cap that holds for `expected` is passed: whatever has a remainder is below its cap.
    """
    counts = {name: math.floor(x) for name, x in expected.items()}
    spare = math.floor(sum(expected.values(), Fraction(0))) - sum(counts.values())
    for name in sorted(expected, key=lambda n: (counts[n] - expected[n], n))[:spare]:
        counts[name] += 1
    return counts


def _decimal(value: Fraction) -> decimal.Decimal:
    return _WORKING.divide(decimal.Decimal(value.numerator), decimal.Decimal(value.denominator))
