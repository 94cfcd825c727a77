"""Scores the served graph on the test part beside forecasts that take no model.

Differences between neighbouring samples are dependent, since their outcomes overlap; intervals for a
difference in mean score therefore come from a block bootstrap.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
import torch

from exporters.demo.dataset import BUY, HOLD, SELL, Dataset, Part
from exporters.spec import ExportableModel

Values = npt.NDArray[np.float64]

INTERVAL = (0.05, 0.95)
"""Quantiles of the 90 % interval."""

BLOCK_SAMPLES = 48
"""Two trading days: eight times the span in which outcomes overlap."""

RESAMPLES = 4_000
_BOOTSTRAP_SEED = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Mean scores on the test part.

    Accuracy and coverage are shares; the log loss is in nats; the Brier score is the sum of squares over the
    classes, 0 to 2; errors and widths are in basis points. None where a forecast has no such score.
    """

    accuracy: float | None = None
    log_loss: float | None = None
    brier: float | None = None
    mae_bp: float | None = None
    interval_coverage: float | None = None
    interval_width_bp: float | None = None

    def as_mapping(self, prefix: str) -> dict[str, float]:
        """The scores that there are, for the checkpoint's metrics."""
        return {
            f"{prefix}{name}": round(value, 6) for name, value in asdict(self).items() if value is not None
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Model minus baseline in a mean score, with a 95 % interval; below 0 the model is better."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """What the interval allows to be said of the model."""
        if self.high < 0:
            return "beats"
        return "is worse than" if self.low > 0 else "cannot be told from"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A model's scores, its ensemble's, and paired differences with the baselines.

    `direction_error_difference` is over the samples that moved past the threshold: the share whose direction
    got the smaller of the two probabilities, minus one half.
    """

    model: Scores
    ensemble: Scores
    log_loss_difference: Difference
    brier_difference: Difference
    absolute_error_difference: Difference
    direction_error_difference: Difference
    monte_carlo_deviation_bp: float


def evaluate(model: ExportableModel, dataset: Dataset) -> Evaluation:
    """Runs the graph as it is exported, on raw windows, with its fixed Monte Carlo masks."""
    part = dataset.test
    outputs = run_graph(model, part.x)
    log_weights = outputs["ensemble_weights"][..., None] * np.log(outputs["member_probs"])
    ensemble_probs = _softmax(log_weights.sum(axis=1))
    ensemble_regression = (outputs["ensemble_weights"][..., None] * outputs["member_regression"]).sum(axis=1)
    samples = outputs["mc_regression"][..., 0]
    prior = class_prior(dataset)
    probs, regression = outputs["classification_probs"], outputs["regression_pred"][:, 0]
    truth = part.forward_return_bp.astype(np.float64)
    return Evaluation(
        model=_scores(part, probs, regression, np.quantile(samples, INTERVAL, axis=1)),
        ensemble=_scores(part, ensemble_probs, ensemble_regression[:, 0], None),
        log_loss_difference=block_bootstrap(_log_losses(probs, part) - _log_losses(prior, part)),
        brier_difference=block_bootstrap(_brier_scores(probs, part) - _brier_scores(prior, part)),
        absolute_error_difference=block_bootstrap(np.abs(regression - truth) - np.abs(truth)),
        direction_error_difference=block_bootstrap(_direction_errors(probs, part) - 0.5),
        monte_carlo_deviation_bp=float(samples.std(axis=1, ddof=1).mean()),
    )


def baselines(dataset: Dataset) -> Mapping[str, Scores]:
    """Forecasts that take no model, under the names that the report uses."""
    part = dataset.test
    count = len(part.label)
    train_quantiles = np.quantile(dataset.train.forward_return_bp.astype(np.float64), INTERVAL)
    interval = np.repeat(train_quantiles[:, None], count, axis=1)
    momentum = part.past_return_bp.astype(np.float64)
    direction = np.eye(3)[1 + np.sign(momentum).astype(np.int64)]
    return {
        "Class shares and return quantiles of training, zero return": _scores(
            part, class_prior(dataset), np.zeros(count), interval
        ),
        "Last value: the return of the last horizon goes on": Scores(
            accuracy=float((direction.argmax(axis=1) == part.label).mean()),
            mae_bp=float(np.abs(momentum - part.forward_return_bp).mean()),
        ),
    }


def class_prior(dataset: Dataset) -> Values:
    """The training part's class shares for each test sample, float64 [samples, classes]."""
    shares = np.bincount(dataset.train.label, minlength=3) / len(dataset.train.label)
    return np.repeat(shares[None], len(dataset.test.label), axis=0)


def run_graph(model: ExportableModel, x: npt.NDArray[np.float32]) -> dict[str, Values]:
    """Runs the graph on float32 [samples, channels, time]; float64 outputs by name."""
    with torch.no_grad():
        chunks = [model.module(chunk) for chunk in torch.split(torch.from_numpy(x), 256)]
    return {
        spec.name: torch.cat([chunk[index] for chunk in chunks]).double().numpy()
        for index, spec in enumerate(model.outputs)
    }


def block_bootstrap(differences: Values) -> Difference:
    """95 % interval of the mean of dependent differences float64 [samples], oldest first.

    Source: Künsch, "The Jackknife and the Bootstrap for General Stationary Observations" (1989), moving blocks.
    """
    count = len(differences)
    generator = np.random.default_rng(_BOOTSTRAP_SEED)
    starts = generator.integers(0, count - BLOCK_SAMPLES + 1, size=(RESAMPLES, -(-count // BLOCK_SAMPLES)))
    sums = np.concatenate([[0.0], np.cumsum(differences)])
    means = (sums[starts + BLOCK_SAMPLES] - sums[starts]).mean(axis=1) / BLOCK_SAMPLES
    low, high = np.quantile(means, (0.025, 0.975))
    return Difference(mean=float(differences.mean()), low=float(low), high=float(high))


def _scores(part: Part, probs: Values, regression: Values, interval: Values | None) -> Scores:
    truth = part.forward_return_bp.astype(np.float64)
    covered = width = None
    if interval is not None:
        low, high = interval
        covered, width = float(((low <= truth) & (truth <= high)).mean()), float((high - low).mean())
    return Scores(
        accuracy=float((probs.argmax(axis=1) == part.label).mean()),
        log_loss=float(_log_losses(probs, part).mean()),
        brier=float(_brier_scores(probs, part).mean()),
        mae_bp=float(np.abs(regression - truth).mean()),
        interval_coverage=covered,
        interval_width_bp=width,
    )


def _direction_errors(probs: Values, part: Part) -> Values:
    moved = part.label != HOLD
    wrong: Values = ((probs[:, BUY] > probs[:, SELL]) != (part.label == BUY))[moved].astype(np.float64)
    return wrong


def _log_losses(probs: Values, part: Part) -> Values:
    losses: Values = -np.log(np.take_along_axis(probs, part.label[:, None], axis=1)[:, 0])
    return losses


def _brier_scores(probs: Values, part: Part) -> Values:
    scores: Values = ((probs - np.eye(probs.shape[1])[part.label]) ** 2).sum(axis=1)
    return scores


def _softmax(logits: Values) -> Values:
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: Values = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return shares
