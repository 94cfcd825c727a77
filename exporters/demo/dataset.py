"""Windows, targets and a chronological split in which nothing overlaps.

A sample is a window of `SEQUENCE_LENGTH` bars and what the price did in the `HORIZON` bars after it. Between
two parts lies a gap of both together: no bar of a later part's windows is seen, as input or as outcome, by
an earlier part. Statistics (normalisation, threshold) are the training part's alone.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from exporters.demo.features import BASIS_POINTS, WARM_UP_BARS, compute_features
from exporters.demo.market_data import Bars
from exporters.spec import Normalization

SEQUENCE_LENGTH = 60
HORIZON = 4
CLASS_NAMES = ("sell", "hold", "buy")
SELL, HOLD, BUY = range(3)

_TRAIN_SHARE = 0.70
_VALIDATION_SHARE = 0.15


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Samples of one part of the split, oldest first.

    `x` float32 [samples, channels, time], raw; `forward_return_bp` float32 [samples]; `label` int64 [samples];
    `last_bar` int64 [samples], the position of each window's last bar; `time` int64 [samples], its start in
    seconds since the epoch; `past_return_bp` float32 [samples], the return over the `HORIZON` bars before.
    """

    x: npt.NDArray[np.float32]
    forward_return_bp: npt.NDArray[np.float32]
    label: npt.NDArray[np.int64]
    last_bar: npt.NDArray[np.int64]
    time: npt.NDArray[np.int64]
    past_return_bp: npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """The three parts, and what was measured on the training part."""

    train: Part
    validation: Part
    test: Part
    threshold_bp: float
    normalization: Normalization


def build_dataset(bars: Bars) -> Dataset:
    """Builds windows and targets, and splits them in time.

    The classes are the forward return against plus or minus one threshold: the lowest third of the
    training part's absolute returns is `hold`.
    """
    features = compute_features(bars)
    log_close = np.log(bars.close)
    last_bars = np.arange(WARM_UP_BARS + SEQUENCE_LENGTH - 1, len(bars.close) - HORIZON, dtype=np.int64)
    forward = (BASIS_POINTS * (log_close[last_bars + HORIZON] - log_close[last_bars])).astype(np.float32)
    past = (BASIS_POINTS * (log_close[last_bars] - log_close[last_bars - HORIZON])).astype(np.float32)
    windows = sliding_window_view(features, SEQUENCE_LENGTH, axis=0)

    train, validation, test = split_positions(len(last_bars))
    threshold = float(np.quantile(np.abs(forward[train]), 1 / 3))
    seen = features[: last_bars[train][-1] - WARM_UP_BARS + 1].astype(np.float64)

    def part(positions: slice) -> Part:
        return Part(
            x=np.ascontiguousarray(windows[positions]),
            forward_return_bp=forward[positions],
            label=label_returns(forward[positions], threshold),
            last_bar=last_bars[positions],
            time=bars.time[last_bars[positions]],
            past_return_bp=past[positions],
        )

    return Dataset(
        train=part(train),
        validation=part(validation),
        test=part(test),
        threshold_bp=threshold,
        normalization=Normalization(
            mean=tuple(seen.mean(axis=0).tolist()), scale=tuple(np.maximum(seen.std(axis=0), 1e-6).tolist())
        ),
    )


def split_positions(samples: int) -> tuple[slice, slice, slice]:
    """Positions of the training, validation and test samples, with gaps of `HORIZON + SEQUENCE_LENGTH`."""
    gap = HORIZON + SEQUENCE_LENGTH
    usable = samples - 2 * gap
    train_end = int(usable * _TRAIN_SHARE)
    validation_start = train_end + gap
    validation_end = validation_start + int(usable * _VALIDATION_SHARE)
    return slice(0, train_end), slice(validation_start, validation_end), slice(validation_end + gap, samples)


def label_returns(forward_bp: npt.NDArray[np.float32], threshold_bp: float) -> npt.NDArray[np.int64]:
    """Classes int64 [samples] of forward returns in basis points: below, within, above the threshold."""
    labels = np.full(len(forward_bp), HOLD, dtype=np.int64)
    labels[forward_bp < -threshold_bp] = SELL
    labels[forward_bp > threshold_bp] = BUY
    return labels
