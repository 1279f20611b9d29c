"""Response surfaces over the numeric options of a sweep: the expected loss between the settings that were tried.

A full quadratic with seed effects is fitted by least squares (posterior under a flat prior: Student's t). Where the
cell means depart from it by more than the runs' own noise allows (F test), a Gaussian process takes its place.
"""

import dataclasses
import itertools
import math

import numpy as np
from jaxtyping import Float, Int
from scipy import linalg, optimize
from scipy.special import fdtrc

from jaxtune.science.best import additive

Points = Float[np.ndarray, "n axes"]
LACK_OF_FIT = 0.05
MOST_CELLS = 300
"""Settings beyond which an exact Gaussian process would take long."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quadratic:
    """Least-squares fit of a full quadratic."""

    terms: tuple[tuple[int, ...], ...]
    """Axes multiplied in each term: () is the constant, (0, 1) the product of the first two."""
    beta: Float[np.ndarray, " terms"]
    root: Float[np.ndarray, "terms terms"]
    """Lower triangular root of the covariance of beta in units of the residual variance."""
    residual: float
    df: int
    lack_of_fit: float
    """p-value of "a quadratic is enough"; NaN where the runs have no noise of their own to compare with."""

    @property
    def noise(self) -> float:
        """Standard deviation of one run around the surface, its seed's effect taken off."""
        return self.residual

    def sample(self, points: Points, draws: int, rng: np.random.Generator) -> Float[np.ndarray, "draws n"]:
        """Surfaces drawn from the posterior, at `points`."""
        scale = self.residual / np.sqrt(rng.chisquare(self.df, (draws, 1)) / self.df)
        beta = self.beta + scale * (rng.standard_normal((draws, len(self.beta))) @ self.root.T)
        return beta @ features(points, self.terms).T

    def mean(self, points: Points) -> Float[np.ndarray, " n"]:
        """Expected value at `points`."""
        return features(points, self.terms) @ self.beta

    def moments(self, points: Points) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, "n n"]]:
        """Posterior mean and covariance at `points`."""
        phi = features(points, self.terms)
        half = self.residual * (phi @ self.root)
        return phi @ self.beta, half @ half.T


def features(points: Points, terms: tuple[tuple[int, ...], ...]) -> Float[np.ndarray, "n terms"]:
    """Products of coordinates, one column a term."""
    return np.stack([np.prod(points[:, list(term)], axis=1) for term in terms], axis=1)


def quadratic_terms(points: Points) -> tuple[tuple[int, ...], ...]:
    """Constant, linear, squares and products, as far as the points tell them apart.

    An axis of two levels has no square; a product that the points do not span is left out.
    """
    axes = range(points.shape[1])
    wanted = [(), *((a,) for a in axes), *itertools.combinations_with_replacement(axes, 2)]
    kept: list[tuple[int, ...]] = []
    for term in wanted:
        if np.linalg.matrix_rank(features(points, (*kept, term)), tol=1e-8) > len(kept):
            kept.append(term)
    return tuple(kept)


def fit_quadratic(points: Points, values: Float[np.ndarray, "n seeds"]) -> Quadratic | None:
    """Fit `values[setting, seed] = phi(point) beta + seed effect + noise` with NaN holes; None without spare runs."""
    cell, seed = np.nonzero(np.isfinite(values))
    y = values[cell, seed]
    used = np.unique(seed)
    effects = np.vstack([np.eye(len(used) - 1), -np.ones((1, len(used) - 1))])[np.searchsorted(used, seed)]
    terms = quadratic_terms(points[np.unique(cell)])
    design = np.hstack([features(points[cell], terms), effects])
    beta, _, rank, _ = np.linalg.lstsq(design, y, rcond=None)
    df = len(y) - int(rank)
    if df < 1 or rank < design.shape[1]:
        return None
    rest = float(np.sum((y - design @ beta) ** 2))
    covariance = np.linalg.inv(design.T @ design)[: len(terms), : len(terms)]
    return Quadratic(
        terms=terms,
        beta=beta[: len(terms)],
        root=np.linalg.cholesky(covariance),
        residual=math.sqrt(rest / df),
        df=df,
        lack_of_fit=lack_of_fit(values, rest, df),
    )


def lack_of_fit(values: Float[np.ndarray, "n seeds"], rest: float, df: int) -> float:
    """p-value of the F test of cell means against the noise inside cells, the seeds' effects taken off both."""
    finite = np.isfinite(values)
    pure = additive(values[np.ix_(finite.any(axis=1), finite.any(axis=0))])
    missing = df - pure.df
    if pure.df < 1 or missing < 1:
        return math.nan
    inside = pure.residual**2 * pure.df
    if inside <= 1e-24:
        return 0.0 if rest > 1e-20 else 1.0
    return float(fdtrc(missing, pure.df, max(rest - inside, 0.0) / missing / pure.residual**2))


@dataclasses.dataclass(frozen=True, kw_only=True)
class GaussianProcess:
    """Matérn 5/2 process over cell means, one length an axis; the noise is that of the runs where seeds repeat."""

    points: Points
    centre: float
    scale: float
    """Standard deviation of the surface."""
    lengths: Float[np.ndarray, " axes"]
    factor: Float[np.ndarray, "n n"]
    """Cholesky factor of the covariance of the cell means."""
    weights: Float[np.ndarray, " n"]
    noise: float
    """Standard deviation of one run around the surface, its seed's effect taken off."""
    df: int

    def mean(self, points: Points) -> Float[np.ndarray, " m"]:
        """Expected value at `points`."""
        return self.centre + matern(points, self.points, self.scale, self.lengths) @ self.weights

    def moments(self, points: Points) -> tuple[Float[np.ndarray, " m"], Float[np.ndarray, "m m"]]:
        """Posterior mean and covariance at `points`."""
        across = matern(points, self.points, self.scale, self.lengths)
        half = linalg.solve_triangular(self.factor, across.T, lower=True)
        return self.centre + across @ self.weights, matern(points, points, self.scale, self.lengths) - half.T @ half

    def sample(self, points: Points, draws: int, rng: np.random.Generator) -> Float[np.ndarray, "draws m"]:
        """Surfaces drawn from the posterior, at `points`."""
        mean, covariance = self.moments(points)
        root = np.linalg.cholesky(covariance + 1e-8 * self.scale**2 * np.eye(len(mean)))
        return mean + rng.standard_normal((draws, len(mean))) @ root.T


def matern(
    a: Points, b: Float[np.ndarray, "m axes"], scale: float, lengths: Float[np.ndarray, " axes"]
) -> Float[np.ndarray, "n m"]:
    """Matérn 5/2 covariance."""
    r = np.sqrt(5 * np.sum(((a[:, None, :] - b[None, :, :]) / lengths) ** 2, axis=-1))
    return scale**2 * (1 + r + r**2 / 3) * np.exp(-r)


def fit_process(points: Points, values: Float[np.ndarray, "n seeds"]) -> GaussianProcess:
    """Fit by the largest marginal likelihood of the cell means. ValueError beyond 300 cells."""
    finite = np.isfinite(values)
    kept = np.nonzero(finite.any(axis=1))[0]
    if len(kept) > MOST_CELLS:
        raise ValueError(f"{len(kept)} settings; an exact Gaussian process takes at most {MOST_CELLS}")
    cells = additive(values[np.ix_(finite.any(axis=1), finite.any(axis=0))])
    x, y = points[kept], cells.setting
    centre, spread = float(y.mean()), float(y.std()) or 1.0
    known = cells.df > 0

    def noise_of(parameters: Float[np.ndarray, " p"]) -> float:
        return cells.residual if known else float(np.exp(parameters[-1]))

    def factor_of(parameters: Float[np.ndarray, " p"]) -> Float[np.ndarray, "n n"]:
        lengths = np.exp(parameters[1 : 1 + x.shape[1]])
        covariance = matern(x, x, float(np.exp(parameters[0])), lengths)
        floor = 1e-8 * spread**2 * np.eye(len(y))
        return np.linalg.cholesky(covariance + noise_of(parameters) ** 2 * cells.covariance + floor)

    def surprise(parameters: Float[np.ndarray, " p"]) -> float:
        factor = factor_of(parameters)
        z = linalg.solve_triangular(factor, y - centre, lower=True)
        # Lengths near the width of the box are likelier than others: a weak prior that keeps them from running away.
        prior = float(np.sum((parameters[1 : 1 + x.shape[1]] - math.log(1.5)) ** 2))
        return float(0.5 * z @ z + np.log(np.diag(factor)).sum() + 0.5 * prior)

    start = np.array([math.log(spread), *([0.0] * x.shape[1]), *([] if known else [math.log(0.3 * spread)])])
    bounds = [(v - 5, v + 3) for v in start]
    best = optimize.minimize(surprise, start, bounds=bounds, method="L-BFGS-B", options={"maxiter": 40}).x
    factor = factor_of(best)
    return GaussianProcess(
        points=x,
        centre=centre,
        scale=float(np.exp(best[0])),
        lengths=np.exp(best[1 : 1 + x.shape[1]]),
        factor=factor,
        weights=linalg.cho_solve((factor, True), y - centre),
        noise=noise_of(best),
        df=cells.df,
    )


def fit_surface(points: Points, values: Float[np.ndarray, "n seeds"]) -> tuple[Quadratic | GaussianProcess, float]:
    """The quadratic, or a Gaussian process where it does not fit or has no runs to spare; and the p-value of its fit.

    `points`: settings in coordinates scaled to [-1, 1]; `values`: lower is better, NaN where there is none.
    """
    quadratic = fit_quadratic(points, values)
    if quadratic is None:
        return fit_process(points, values), math.nan
    if quadratic.lack_of_fit < LACK_OF_FIT:
        return fit_process(points, values), quadratic.lack_of_fit
    return quadratic, quadratic.lack_of_fit


def knowledge_gradient(
    mean: Float[np.ndarray, " n"],
    covariance: Float[np.ndarray, "n n"],
    candidates: Int[np.ndarray, " c"],
    *,
    noise: float,
    count: int,
) -> list[int]:
    """Points whose measurement lowers the expected minimum the most, one after the other, each as if measured at its
    mean.

    `noise`: standard deviation of the mean over the seeds of one new setting (Frazier et al. 2009).
    """
    nodes = np.sqrt(2) * np.polynomial.hermite.hermgauss(15)[0]
    weights = np.polynomial.hermite.hermgauss(15)[1] / math.sqrt(math.pi)
    chosen: list[int] = []
    current = covariance.copy()
    for _ in range(count):
        variance = np.maximum(np.diag(current)[candidates], 1e-18) + noise**2
        shift = current[:, candidates] / np.sqrt(variance)
        gains = np.array(
            [mean.min() - weights @ (mean[:, None] + column[:, None] * nodes).min(axis=0) for column in shift.T]
        )
        gains[np.isin(candidates, chosen)] = -np.inf
        best = int(np.argmax(gains))
        chosen.append(int(candidates[best]))
        current = current - np.outer(shift[:, best], shift[:, best])
    return chosen
