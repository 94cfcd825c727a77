"""What the sums of rewards tell of each agent's worth, and how probable it is that each is the best. Pure."""

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from control_plane.ensembles.credit import Floats

DRAWS = 4096
_SEED = 20_090_331
_PRIOR_MEAN_COUNT = 1.0
"""How many rewards the prior's mean is worth."""
_PRIOR_VARIANCE_COUNT = 4.0
"""How many rewards the prior's variance is worth; above 2, so that an agent without rewards has a finite sd."""
_TINY = float(np.finfo(np.float64).tiny)
_ROUNDING = 1e-12
"""A variance below this share of the mean square is the rounding of Σc·r² - (Σc·r)²/Σc, not a variance."""
_GRID = 129
_GRID_SDS = 12.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Posterior:
    """What is known of an agent's mean reward.

    Attributes:
        mean: Posterior mean.
        sd: Posterior standard deviation.
        lower: 2.5 % quantile.
        upper: 97.5 % quantile.
        pulls: Effective number of rewards.

    All but `pulls` are None while the rewards have shown no scale: fewer than two different ones.
    """

    mean: float | None
    sd: float | None
    lower: float | None
    upper: float | None
    pulls: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The sums of each agent as a count, a mean and a variance; float64 [agents] each, 0 without rewards.

    Attributes:
        count: Effective number of rewards.
        mean: Of the rewards, weighted by credit.
        variance: About that mean, likewise.
        centre: Mean over all agents.
        pooled: Variance over all agents, about `centre`; 0: the rewards have shown no scale yet.
    """

    count: Floats
    mean: Floats
    variance: Floats
    centre: float
    pooled: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Normal:
    """Student's t, the Normal-Gamma posterior's marginal of the mean reward; float64 [agents] each.

    Scale 0 throughout: the rewards have shown no scale yet.
    """

    location: Floats
    scale: Floats
    degrees: Floats

    @property
    def means(self) -> Floats:
        """float64 [agents]."""
        return self.location

    def take(self, order: npt.NDArray[np.intp]) -> "Normal":
        """The agents in another order."""
        return Normal(location=self.location[order], scale=self.scale[order], degrees=self.degrees[order])

    def draws(self) -> Floats:
        """float64 [agents, 4096], from random numbers that are the same in each call.

        T = cos(2πV)·√(ν(U^(-2/ν) - 1)) has Student's t distribution with ν degrees.

        Source: R. W. Bailey, "Polar Generation of Random Variates with the t-Distribution", Math. Comp. 62 (1994),
        779-781.
        """
        log_u, cosine = _polar(len(self.location))
        degrees = self.degrees[:, np.newaxis]
        standard = cosine * np.sqrt(degrees * np.expm1(log_u / degrees))
        drawn: Floats = self.location[:, np.newaxis] + self.scale[:, np.newaxis] * standard
        return drawn

    def summaries(self, counts: Floats) -> tuple[Posterior, ...]:
        """One for each agent."""
        half = self.scale * _special().stdtrit(self.degrees, 0.975)
        sd = self.scale * np.sqrt(self.degrees / (self.degrees - 2.0))
        if not self.scale.any():
            return tuple(
                Posterior(mean=None, sd=None, lower=None, upper=None, pulls=float(n)) for n in counts
            )
        columns = (self.location, sd, self.location - half, self.location + half, counts)
        return tuple(_posterior(*map(float, row)) for row in zip(*columns, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Beta:
    """The posterior of a success probability; float64 [agents] each."""

    a: Floats
    b: Floats

    @property
    def means(self) -> Floats:
        """float64 [agents]."""
        return self.a / (self.a + self.b)

    def take(self, order: npt.NDArray[np.intp]) -> "Beta":
        """The agents in another order."""
        return Beta(a=self.a[order], b=self.b[order])

    def draws(self) -> Floats:
        """float64 [agents, 4096], from random numbers that are the same in each call.

        By inversion of the distribution function on a grid; 4,096 inverse incomplete beta functions would take long.
        """
        mean, sd = self._moments()
        lower, upper = np.maximum(mean - _GRID_SDS * sd, 0.0), np.minimum(mean + _GRID_SDS * sd, 1.0)
        grid = np.linspace(lower, upper, _GRID, axis=-1)
        heights = _special().betainc(self.a[:, np.newaxis], self.b[:, np.newaxis], grid)
        uniform = _uniform(len(self.a))
        return np.stack([np.interp(*row) for row in zip(uniform, heights, grid, strict=True)])

    def summaries(self, counts: Floats) -> tuple[Posterior, ...]:
        """One for each agent."""
        mean, sd = self._moments()
        lower, upper = (_special().betaincinv(self.a, self.b, level) for level in (0.025, 0.975))
        columns = (mean, sd, lower, upper, counts)
        return tuple(_posterior(*map(float, row)) for row in zip(*columns, strict=True))

    def _moments(self) -> tuple[Floats, Floats]:
        mean = self.means
        return mean, np.sqrt(mean * (1.0 - mean) / (self.a + self.b + 1.0))


def evidence(statistics: Floats) -> Evidence:
    """Count, mean and variance of the rewards of each agent, weighted by credit.

    The count is Kish's effective size (Σc)²/Σc², not Σc: credits are importance weights, 1 on average for each agent,
    however seldom its actions are taken; Σc would have a rare agent known as well as a frequent one. With equal credits
    both are the number of rewards; with forgetting the count shrinks as the sums do.

    Args:
        statistics: float64 [agents, 4] (`credit.STATISTICS`).

    Source: L. Kish, "Survey Sampling", 1965, section 11.7 (as the design effect 1 + CV² of unequal weights); A. B.
    Owen, "Monte Carlo theory, methods and examples", 2013, section 9.3 (self-normalised importance sampling).
    """
    c, c2, cr, crr = statistics.T
    known = (c > 0.0) & (c2 > 0.0)
    safe = np.where(known, c, 1.0)
    count = np.where(known, c**2 / np.where(known, c2, 1.0), 0.0)
    mean, square = np.where(known, cr / safe, 0.0), np.where(known, crr / safe, 0.0)
    variance = square - mean**2
    variance = np.where(variance > _ROUNDING * square, variance, 0.0)
    share = count / max(float(count.sum()), _TINY)
    centre = float(share @ mean)
    pooled = float(share @ (variance + (mean - centre) ** 2))
    return Evidence(
        count=count,
        mean=mean,
        variance=variance,
        centre=centre,
        pooled=pooled if pooled > _ROUNDING * centre**2 else 0.0,
    )


def normal_posterior(found: Evidence) -> Normal:
    """The posterior of each agent's mean reward under a Normal-Gamma prior, conjugate.

    The prior is weak and takes its place and scale from the rewards of all agents together (empirical Bayes): mean
    worth one reward at their common mean, variance worth four at their common variance. So weights don't change when
    all rewards are multiplied by a positive number or shifted, and an agent without rewards is believed to be as the
    others, give or take one reward's noise.

    Source: K. P. Murphy, "Conjugate Bayesian analysis of the Gaussian distribution", 2007, section 3;
    C. N. Morris, "Parametric Empirical Bayes Inference", JASA 78 (1983), 47-55.
    """
    n = found.count
    kappa = _PRIOR_MEAN_COUNT + n
    degrees = _PRIOR_VARIANCE_COUNT + n
    apart = found.mean - found.centre
    squares = (
        _PRIOR_VARIANCE_COUNT * found.pooled + n * found.variance + (_PRIOR_MEAN_COUNT * n / kappa) * apart**2
    )
    return Normal(
        location=found.centre + (n / kappa) * apart,
        scale=np.sqrt(squares / (degrees * kappa)) if found.pooled > 0.0 else np.zeros_like(n),
        degrees=degrees,
    )


def beta_posterior(found: Evidence) -> Beta:
    """The posterior of each agent's success probability, for rewards from 0 to 1, under the uniform prior.

    Source: W. R. Thompson, "On the likelihood that one unknown probability exceeds another in view of the evidence of
    two samples", Biometrika 25 (1933), 285-294.
    """
    successes = found.count * np.clip(found.mean, 0.0, 1.0)
    return Beta(a=1.0 + successes, b=1.0 + (found.count - successes))


def best_probabilities(posterior: Normal | Beta) -> Floats:
    """How probable it is that each agent is the best, by 4,096 draws from independent posteriors.

    Args:
        posterior: Of all agents.

    Returns:
        float64 [agents], sums to 1. Half a draw is added for each agent, so that no one is ever written off for good,
        and every action that some agent would take keeps a known, positive propensity.

    Source: Thompson (1933); S. Agrawal, N. Goyal, "Further Optimal Regret Bounds for Thompson Sampling", AISTATS 2013.
    """
    drawn = posterior.draws()
    counts = np.bincount(drawn.argmax(axis=0), minlength=len(drawn))
    return (counts + 0.5) / (DRAWS + 0.5 * len(drawn))


def _posterior(mean: float, sd: float, lower: float, upper: float, pulls: float) -> Posterior:
    return Posterior(mean=mean, sd=sd, lower=lower, upper=upper, pulls=pulls)


def _special() -> Any:
    """scipy.special: of no use to a server without ensembles, whose start it would slow down."""
    from scipy import special  # noqa: PLC0415

    return special


@functools.lru_cache(maxsize=16)
def _uniform(agents: int) -> Floats:
    """float64 [agents, 4096]; the same on every machine, as all replicas are to find the same weights."""
    return np.random.Generator(np.random.PCG64(_SEED)).random((agents, DRAWS))


@functools.lru_cache(maxsize=16)
def _polar(agents: int) -> tuple[Floats, Floats]:
    """-2 ln U and cos 2πV, float64 [agents, 4096] each."""
    u, v = np.split(np.random.Generator(np.random.PCG64(_SEED)).random((2 * agents, DRAWS)), 2)
    return -2.0 * np.log1p(-u), np.cos(2.0 * np.pi * v)
