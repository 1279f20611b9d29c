"""Mixture laws: the loss of each task as a function of the shares of all, and the best shares under caps.

L_i(r) = c_i + exp(sum_j t_ij r_j) with shares r that add to 1 (arXiv 2403.16952; the factor k_i of the paper is part of
t_ij, since shares add to 1). Only differences of t inside a row are identified.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float
from scipy import optimize, stats

Shares = Float[np.ndarray, "arms tasks"]
STARTS = 20
NOISE = 0.02
"""Residuals above this (nats) count linearly, not squared: a diverged run does not decide the fit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureLaw:
    """Fitted losses of all targets."""

    floor: Float[np.ndarray, " targets"]
    """c_i: what no mixture goes below, nats."""
    rates: Float[np.ndarray, "targets tasks"]
    """t_ij; negative where more of task j lowers the loss of i."""
    r2: Float[np.ndarray, " targets"]
    """Of each arm predicted by the others (leave-one-out); can be negative."""
    rank: float
    """Spearman's correlation of the mean over targets, predicted so, with what was measured."""

    def losses(self, shares: Shares) -> Float[np.ndarray, "arms targets"]:
        """Predicted losses at some shares."""
        return self.floor + np.exp(shares @ self.rates.T)

    @property
    def centred(self) -> Float[np.ndarray, "targets tasks"]:
        """The rates without their mean in each row: what is identified."""
        return self.rates - self.rates.mean(axis=1, keepdims=True)


def fit_law(shares: Shares, losses: Float[np.ndarray, "arms targets"], *, seed: int = 0) -> MixtureLaw:
    """Fit every target by soft-L1 least squares from 20 starts. ValueError for fewer than three arms a task."""
    arms, tasks = shares.shape
    if arms < 3 * tasks:
        raise ValueError(f"{arms} mixtures for {tasks} tasks; a law needs at least {3 * tasks}")
    rng = np.random.default_rng(seed)
    fits = [fit_target(shares, losses[:, i], rng) for i in range(losses.shape[1])]
    held = np.empty_like(losses)
    for arm in range(arms):
        kept = np.arange(arms) != arm
        for i, fit in enumerate(fits):
            again = descend(shares[kept], losses[kept, i], fit)[0]
            held[arm, i] = predict(again, shares[arm : arm + 1])[0]
    spread = np.sum((losses - losses.mean(axis=0)) ** 2, axis=0)
    r2 = 1 - np.sum((losses - held) ** 2, axis=0) / np.where(spread > 0, spread, math.nan)
    rank = float(np.asarray(stats.spearmanr(held.mean(axis=1), losses.mean(axis=1)))[0])
    return MixtureLaw(
        floor=np.array([fit[0] for fit in fits]), rates=np.stack([fit[1:] for fit in fits]), r2=r2, rank=rank
    )


def predict(fit: Float[np.ndarray, " p"], shares: Shares) -> Float[np.ndarray, " arms"]:
    """c + exp(t . r) of a fit (c, t)."""
    return fit[0] + np.exp(np.minimum(shares @ fit[1:], 50.0))


def descend(
    shares: Shares, losses: Float[np.ndarray, " arms"], start: Float[np.ndarray, " p"]
) -> tuple[Float[np.ndarray, " p"], float]:
    """The nearest minimum of the robust residual from a start, and its cost."""
    highest = np.r_[float(losses.min()), np.full(shares.shape[1], 20.0)]
    lowest = np.r_[min(0.0, float(losses.min()) - 1), np.full(shares.shape[1], -40.0)]
    found = optimize.least_squares(
        lambda p: predict(p, shares) - losses, np.clip(start, lowest + 1e-9, highest - 1e-9),
        bounds=(lowest, highest), loss="soft_l1", f_scale=NOISE, max_nfev=400,
    )  # fmt: skip
    return found.x, float(found.cost)


def fit_target(shares: Shares, losses: Float[np.ndarray, " arms"], rng: np.random.Generator) -> Float[np.ndarray, " p"]:
    """(c, t) of one target: the best of several starts, each a log-linear fit above a guessed floor."""
    spread = float(np.ptp(losses)) or 1.0
    best, least = None, math.inf
    for _ in range(STARTS):
        floor = float(losses.min()) - spread * rng.uniform(0.02, 1.5)
        height = np.log(losses - floor)
        t = np.linalg.lstsq(shares.T @ shares + 1e-3 * np.eye(shares.shape[1]), shares.T @ height, rcond=None)[0]
        found, cost = descend(shares, losses, np.r_[floor, t])
        if cost < least:
            best, least = found, cost
    assert best is not None
    return best


def best_shares(
    law: MixtureLaw, caps: Float[np.ndarray, " tasks"] | None = None, *, seed: int = 0
) -> Float[np.ndarray, " tasks"]:
    """Shares with the lowest predicted mean over targets, each at most its cap. ValueError if the caps allow none.

    `caps`: the largest share of each task, R * usable / budget under a cap of R passes; None: 1.
    """
    tasks = law.rates.shape[1]
    caps = np.ones(tasks) if caps is None else np.minimum(caps, 1.0)
    if caps.sum() < 1 - 1e-9:
        raise ValueError(f"caps that add to {caps.sum():.3f} leave no mixture")
    mean = lambda r: float(law.losses(r[None]).mean())
    slope = lambda r: (np.exp(law.rates @ r)[:, None] * law.rates).mean(axis=0)
    rng = np.random.default_rng(seed)
    starts = [caps / caps.sum(), *(capped(draw, caps) for draw in rng.dirichlet(np.ones(tasks), STARTS))]
    whole = {"type": "eq", "fun": lambda r: r.sum() - 1, "jac": lambda r: np.ones(tasks)}
    runs = [
        optimize.minimize(mean, start, jac=slope, method="SLSQP", bounds=[(0, cap) for cap in caps], constraints=whole)
        for start in starts
    ]
    found = capped(np.maximum(min(runs, key=lambda one: one.fun).x, 0), caps)
    return found


def capped(shares: Float[np.ndarray, " tasks"], caps: Float[np.ndarray, " tasks"]) -> Float[np.ndarray, " tasks"]:
    """Shares cut to their caps; what is cut off goes to the others in proportion, as `allocate` does it."""
    shares = shares / shares.sum()
    for _ in range(len(shares)):
        over = shares > caps
        if not over.any():
            break
        fixed = over | (shares >= caps)
        rest = shares[~fixed].sum()
        left = 1 - caps[fixed].sum()
        shares = np.where(fixed, caps, shares * (left / rest) if rest > 0 else caps * left / caps[~fixed].sum())
    return shares
