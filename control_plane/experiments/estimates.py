"""The difference between two variants and its standard error, from sums in buckets of units. Pure, vectorised.

Estimates are stratified by share epoch: where shares change in time and so does the level, sums over all epochs would
compare late treatments with early controls. The epochs' differences are averaged with the weights n_t·n_c/(n_t + n_c)
of Cochran, Mantel and Haenszel: best where the spread is the same in both, and resting on counts alone. Weights by the
inverse of estimated variances would not do: an epoch without any error has none, and would outweigh all others. Nor
would the treatment's counts: an epoch with hardly any control would count in full. Counts are known before the
outcomes, so the weights stay right where shares follow earlier outcomes (bandit).

The variance sums each bucket's weighted residuals over epochs before it squares them, as a unit that stays in an
experiment stays in its bucket.

Source: W. G. Cochran, "Some methods for strengthening the common χ² tests", Biometrics 10 (1954), 417-451;
N. Mantel, W. Haenszel, J. Natl. Cancer Inst. 22 (1959), 719-748; for the bucketed variance see moments.py;
A. Deng, Y. Xu, R. Kohavi, T. Walker, "Improving the Sensitivity of Online Controlled Experiments by Utilizing
Pre-Experiment Data", WSDM 2013 (CUPED).
"""

from dataclasses import dataclass

import numpy as np

from control_plane.experiments.moments import XN, YY, Floats, N, X, Y

_ROUNDING = 1e-12
"""A standard error below this share of the level is the rounding of sums, not a spread."""
_LEAST_BUCKETS = 2.0
"""An epoch counts when either variant fills two buckets or more; one says nothing of the spread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A pair's difference, treatment - ratio · control; float64 [...] each, as the moments' leading axes.

    Attributes:
        difference: 0 while nothing is known.
        standard_error: Infinite while nothing is known: no epoch with both, or no spread yet.
        treatment: Mean over epochs, weighted as the difference.
        control: Likewise.
        treatment_error: Standard error of `treatment`.
        control_error: Standard error of `control`.
        treatment_buckets: Effective number of buckets, (Σn)²/Σn², over all epochs; 0 without requests.
        control_buckets: Likewise.
    """

    difference: Floats
    standard_error: Floats
    treatment: Floats
    control: Floats
    treatment_error: Floats
    control_error: Floats
    treatment_buckets: Floats
    control_buckets: Floats

    @property
    def degrees(self) -> Floats:
        """Degrees of freedom of the standard error by Welch and Satterthwaite, from effective buckets; at least 1."""
        parts = np.stack([self.treatment_error**2, self.control_error**2])
        parts = np.where(np.isfinite(parts), parts, 0.0)
        own = np.maximum(np.stack([self.treatment_buckets, self.control_buckets]) - 1.0, 1.0)
        below = np.sum(parts**2 / own, axis=0)
        found: Floats = np.sum(parts, axis=0) ** 2 / np.where(below > 0.0, below, 1.0)
        return np.maximum(found, 1.0)

    @property
    def relative(self) -> Floats:
        """treatment / control - 1; NaN where the control is 0."""
        safe = np.where(self.control == 0.0, np.nan, self.control)
        found: Floats = self.treatment / safe - 1.0
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjusted:
    """The estimate after taking out what a covariate foretells, and by how much that helped.

    Attributes:
        estimate: With theta·(x - mean of x) taken from the observations that have a covariate.
        theta: Slope of the metric on the covariate, float64 [...].
        variance_reduction: 1 - (se adjusted / se)², float64 [...]; 0 while nothing is known.
    """

    estimate: Estimate
    theta: Floats
    variance_reduction: Floats


@dataclass(frozen=True, slots=True, kw_only=True)
class _Arm:
    """One variant: mean float64 [...], residuals float64 [..., 256] whose sum of squares is the mean's variance."""

    mean: Floats
    residuals: Floats
    buckets: Floats
    smoothing: Floats


def estimate(
    treatment: Floats, control: Floats, *, binary: bool = False, paired: bool = False, ratio: float = 1.0
) -> Estimate:
    """The difference of two variants, stratified by epoch.

    Args:
        treatment: float64 [..., epochs, 256, moments].
        control: Likewise.
        binary: The metric is 0 or 1. A variant without any 1 would have no spread; so its variance counts one more
            of each: p(1 - p) with p = (k + 1)/(n + 2) where that is more.
        paired: Both saw the same requests (shadow): what a bucket's units have in common cancels.
        ratio: The difference is treatment - ratio · control.
    """
    weights = _weights(treatment, control)
    ours, theirs = (
        _arm(moments, moments[..., Y], weights, binary=binary) for moments in (treatment, control)
    )
    return _estimate(ours, theirs, weights, paired=paired, ratio=ratio)


def level(moments: Floats, *, binary: bool = False) -> Estimate:
    """One variant's mean over all epochs, as a difference from 0.

    Args:
        moments: float64 [..., epochs, 256, moments].
        binary: See `estimate`.
    """
    usable = effective_buckets(moments[..., N]) >= _LEAST_BUCKETS
    counts = np.where(usable, moments[..., N].sum(axis=-1), 0.0)
    total = counts.sum(axis=-1, keepdims=True)
    weights = counts / np.where(total > 0.0, total, 1.0)
    arm = _arm(moments, moments[..., Y], weights, binary=binary)
    nothing = np.zeros_like(arm.mean)
    zero = _Arm(mean=nothing, residuals=np.zeros_like(arm.residuals), buckets=nothing, smoothing=nothing)
    return _estimate(arm, zero, weights, paired=False, ratio=1.0)


def adjusted(
    treatment: Floats, control: Floats, *, binary: bool = False, paired: bool = False, ratio: float = 1.0
) -> Adjusted:
    """As `estimate`, with less variance where requests carry a covariate that foretells the metric (CUPED).

    theta is the slope over all buckets of both variants of the metric's residuals on the covariate's, the one that
    makes the variance least. Requests without a covariate stay as they are.

    Args:
        treatment: float64 [..., epochs, 256, moments].
        control: Likewise.
        binary: See `estimate`.
        paired: See `estimate`.
        ratio: See `estimate`.
    """
    weights = _weights(treatment, control)
    both = treatment + control
    known = both[..., XN].sum(axis=-1)
    centre = (both[..., X].sum(axis=-1) / np.where(known > 0.0, known, 1.0))[..., np.newaxis]
    pair = (treatment, control)
    ys = [_arm(moments, moments[..., Y], weights, binary=binary) for moments in pair]
    xs = [
        _arm(moments, moments[..., X] - centre * moments[..., XN], weights, binary=False) for moments in pair
    ]
    raw = _estimate(ys[0], ys[1], weights, paired=paired, ratio=ratio)
    y_parts, x_parts = (_parts(arms[0], arms[1], paired=paired, ratio=ratio) for arms in (ys, xs))
    across = np.sum(y_parts * x_parts, axis=-1)
    spread = np.sum(x_parts**2, axis=-1)
    theta: Floats = np.where(spread > 0.0, across / np.where(spread > 0.0, spread, 1.0), 0.0)
    taken = [
        _Arm(
            mean=y.mean - theta * x.mean,
            residuals=y.residuals - theta[..., np.newaxis] * x.residuals,
            buckets=y.buckets,
            smoothing=y.smoothing,
        )
        for y, x in zip(ys, xs, strict=True)
    ]
    found = _estimate(taken[0], taken[1], weights, paired=paired, ratio=ratio)
    informed = np.isfinite(raw.standard_error) & np.isfinite(found.standard_error)
    shares = np.where(informed, found.standard_error, 1.0) / np.where(informed, raw.standard_error, 1.0)
    return Adjusted(estimate=found, theta=theta, variance_reduction=1.0 - shares**2)


def design_effect(moments: Floats) -> Floats:
    """How much larger the variance of a mean is than with independent requests; float64 [...], at least 1.

    Args:
        moments: Of one variant, float64 [..., epochs, 256, moments].

    Source: L. Kish, "Survey Sampling", 1965, section 5.4.
    """
    n, y, yy = (moments[..., column].sum(axis=-1) for column in (N, Y, YY))
    used = n > 1.0
    safe = np.where(used, n, 2.0)
    alone = np.where(used, np.maximum(yy - y**2 / safe, 0.0) * safe / (safe - 1.0), 0.0).sum(axis=-1)
    apart = moments[..., Y] - (y / safe)[..., np.newaxis] * moments[..., N]
    # Over epochs first: a unit that stays is in the same bucket in all of them.
    residuals = np.sum(np.where(used[..., np.newaxis], apart, 0.0), axis=-2)
    buckets = np.maximum(effective_buckets(moments[..., N].sum(axis=-2)), _LEAST_BUCKETS)
    together = np.sum(residuals**2, axis=-1) * buckets / (buckets - 1.0)
    spread = alone > _ROUNDING * np.sum(yy, axis=-1)
    found: Floats = np.where(spread, together / np.where(spread, alone, 1.0), 1.0)
    return np.maximum(found, 1.0)


def effective_buckets(counts: Floats) -> Floats:
    """(Σn)²/Σn²: how many equally filled buckets would say as much; 0 without any.

    Args:
        counts: float64 [..., 256].

    Source: L. Kish, "Survey Sampling", 1965, section 11.7; A. V. Carter, K. T. Schnepel, D. G. Steigerwald,
    "Asymptotic Behavior of a t-Test Robust to Cluster Heterogeneity", Rev. Econ. Stat. 99 (2017), 698-709.
    """
    squares = np.sum(counts**2, axis=-1)
    found: Floats = np.sum(counts, axis=-1) ** 2 / np.where(squares > 0.0, squares, 1.0)
    return found


def _weights(treatment: Floats, control: Floats) -> Floats:
    """float64 [..., epochs], sums to 1; all 0 where no epoch has both."""
    usable = (effective_buckets(treatment[..., N]) >= _LEAST_BUCKETS) & (
        effective_buckets(control[..., N]) >= _LEAST_BUCKETS
    )
    t, c = treatment[..., N].sum(axis=-1), control[..., N].sum(axis=-1)
    raw = np.where(usable, t * c / np.where(usable, t + c, 1.0), 0.0)
    total = raw.sum(axis=-1, keepdims=True)
    found: Floats = raw / np.where(total > 0.0, total, 1.0)
    return found


def _arm(moments: Floats, sums: Floats, weights: Floats, *, binary: bool) -> _Arm:
    """One variant's mean of `sums` / n over epochs.

    var(mean) = Σ_g (sum_g - mean·n_g)² / (Σ n_g)² · G/(G - 1), where G is the effective number of buckets: 256 when
    they are equally full, fewer with few or unequal units, as it should: with independent requests the expectation of
    the sum of squares is σ²·(Σn - Σn²/Σn), whatever the n_g are.
    """
    counts = moments[..., N]
    total = counts.sum(axis=-1)
    used = weights > 0.0
    safe = np.where(used, total, 1.0)
    means = np.where(used, sums.sum(axis=-1) / safe, 0.0)
    filled = np.where(used, effective_buckets(counts), 2.0)
    scale = weights / safe * np.sqrt(filled / (filled - 1.0))
    residuals = np.sum(scale[..., np.newaxis] * (sums - means[..., np.newaxis] * counts), axis=-2)
    smoothing = np.zeros(weights.shape[:-1])
    if binary:
        smoothed = (sums.sum(axis=-1) + 1.0) / (total + 2.0)
        more = smoothed * (1.0 - smoothed) - means * (1.0 - means)
        smoothing = np.sum(np.where(used, weights**2 * np.maximum(more, 0.0) / safe, 0.0), axis=-1)
    return _Arm(
        mean=np.sum(weights * means, axis=-1),
        residuals=residuals,
        buckets=effective_buckets(counts.sum(axis=-2)),
        smoothing=smoothing,
    )


def _parts(treatment: _Arm, control: _Arm, *, paired: bool, ratio: float) -> Floats:
    """Residuals whose sum of squares is the difference's variance; float64 [..., 256 or 512]."""
    if paired:
        return treatment.residuals - ratio * control.residuals
    return np.concatenate([treatment.residuals, ratio * control.residuals], axis=-1)


def _estimate(treatment: _Arm, control: _Arm, weights: Floats, *, paired: bool, ratio: float) -> Estimate:
    parts = _parts(treatment, control, paired=paired, ratio=ratio)
    error = np.sqrt(np.sum(parts**2, axis=-1) + treatment.smoothing + ratio**2 * control.smoothing)
    level = np.maximum(np.abs(treatment.mean), np.abs(ratio * control.mean))
    known = np.any(weights > 0.0, axis=-1) & (error > _ROUNDING * level)
    errors = [np.sqrt(np.sum(arm.residuals**2, axis=-1) + arm.smoothing) for arm in (treatment, control)]
    return Estimate(
        difference=treatment.mean - ratio * control.mean,
        standard_error=np.where(known, error, np.inf),
        treatment=treatment.mean,
        control=control.mean,
        treatment_error=errors[0],
        control_error=errors[1],
        treatment_buckets=treatment.buckets,
        control_buckets=control.buckets,
    )
