"""What each entry of a log says of each target policy, and how noisy that was bound to be.

Nothing here looks ahead: an entry's score uses a model of the rewards before it, and its foreseeable variance the
contexts and rewards before it and the weights in force. So scores are a martingale around the target's value also when
the weights were learning from the same rewards.
"""

from dataclasses import dataclass

import numpy as np

from control_plane.ensembles.credit import Floats
from control_plane.ensembles.logged import Log
from control_plane.ensembles.outcome_model import BURN_IN, OutcomeModel, past_only_models

REFERENCES = 64
"""Past contexts, over which the foreseeable variance is averaged."""
_TINY = 1e-12
"""Smallest propensity that is divided by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Of all targets at once.

    Attributes:
        ratios: float64 [targets, entries]: ρ.
        robust: float64 [targets, entries − burn-in]: doubly robust scores.
        stabilisers: float64 [targets, entries − burn-in]: h, one over the score's foreseeable standard deviation.
        effective: float64 [targets]: `PolicyValue.expected_effective_size`.
        unsupported: float64 [targets]: `PolicyValue.unsupported`.
    """

    ratios: Floats
    robust: Floats
    stabilisers: Floats
    effective: Floats
    unsupported: Floats


def score(log: Log, probs: Floats) -> Scores:
    """Scores each entry for each target: Γ = Σ_a π_v(a|x) m(x, a) + ρ·(r − m(x, action)), m being fitted to the past.

    Args:
        log: Sampled entries only, more than the burn-in.
        probs: float64 [targets, entries, actions].

    Source: Dudík, Langford, Li, 'Doubly robust policy evaluation and learning', ICML 2011.
    """
    count = len(log.action)
    ratios = np.take_along_axis(probs, log.action[np.newaxis, :, np.newaxis], axis=2)[..., 0] / log.propensity
    robust = np.empty((len(probs), count - BURN_IN))
    variance = np.empty_like(robust)
    for batch, model in past_only_models(log.agent_probs, log.action, log.reward):
        expected = model.predict(log.agent_probs[batch])  # [entries, actions]
        taken = np.take_along_axis(expected, log.action[batch, np.newaxis], axis=1)[:, 0]
        direct = np.einsum("vnk,nk->vn", probs[:, batch], expected)
        here = slice(batch.start - BURN_IN, batch.stop - BURN_IN)
        robust[:, here] = direct + ratios[:, batch] * (log.reward[batch] - taken)
        variance[:, here] = foreseeable_variance(log, probs, batch, model)
    stabilisers = np.where(variance > 0.0, variance, 1.0) ** -0.5
    shares = stabilisers / stabilisers.sum(axis=1, keepdims=True)

    mixture = np.maximum(np.einsum("na,nak->nk", log.weights, log.agent_probs, optimize=True), _TINY)[
        BURN_IN:
    ]
    late = probs[:, BURN_IN:]
    relative = late / mixture
    is_rare = relative > count
    unsupported = np.where(is_rare, late, 0.0).sum(axis=2)
    second_moments = np.where(is_rare, 0.0, late * relative).sum(axis=2)  # E[ρ²|x]
    return Scores(
        ratios=ratios,
        robust=robust,
        stabilisers=stabilisers,
        effective=1.0 / np.maximum((shares**2 * second_moments).sum(axis=1), _TINY),
        unsupported=(shares * unsupported).sum(axis=1),
    )


def foreseeable_variance(log: Log, probs: Floats, batch: slice, model: OutcomeModel) -> Floats:
    """Variance of a batch's doubly robust scores, as it could be foreseen before each entry's context was seen.

    Averaged over contexts from before the batch, with the weights in force at the entry:
    mean_x Σ_a π_v(a|x)² · noise_a / π_entry(a|x) + var_x Σ_a π_v(a|x) · m(x, a).

    Returns:
        float64 [targets, entries of the batch].

    Source: Bibaut et al., 'Post-contextual-bandit inference', NeurIPS 2021; Zhan et al., KDD 2021.
    """
    past = np.unique(np.linspace(0, batch.start - 1, REFERENCES).astype(np.int64))
    contexts, probs = log.agent_probs[past], probs[:, past]
    direct = np.einsum("vmk,mk->vm", probs, model.predict(contexts))
    squares = (probs**2 * model.noise).reshape(len(probs), -1) / len(past)
    weights = log.weights[batch]
    is_new = np.ones(len(weights), np.bool_)  # the same weights usually stay for many entries
    is_new[1:] = np.any(weights[1:] != weights[:-1], axis=1)
    mixtures = weights[is_new] @ contexts.transpose(1, 0, 2).reshape(weights.shape[1], -1)
    variance = squares @ (1.0 / np.maximum(mixtures, _TINY)).T + direct.var(axis=1)[:, np.newaxis]
    repeated: Floats = variance[:, np.cumsum(is_new) - 1]
    return repeated
