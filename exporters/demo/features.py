"""Features of a bar from that bar and earlier ones only; raw, since the served graph normalises them itself."""

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from exporters.demo.market_data import Bars

Values = npt.NDArray[np.float64]

WARM_UP_BARS = 120
"""Bars at the start whose features lack history; the longest look-back."""

BASIS_POINTS = 1e4

FEATURE_NAMES = (
    "log_return_1h_bp",
    "log_return_4h_bp",
    "log_return_24h_bp",
    "high_low_range_bp",
    "close_in_range",
    "volatility_24h_bp",
    "log_volume",
    "volume_z_24h",
    "distance_to_mean_24h_bp",
    "distance_to_mean_120h_bp",
    "hour_sin",
    "hour_cos",
)
"""Channels of the input, in order; `_bp` are basis points, hours are bars, the hour of day is UTC."""


def compute_features(bars: Bars) -> npt.NDArray[np.float32]:
    """Computes float32 [bars - WARM_UP_BARS, channels]; row i belongs to bar i + WARM_UP_BARS."""
    log_close = np.log(bars.close)
    log_volume = np.log(bars.volume)
    returns = np.diff(log_close, prepend=log_close[0])
    spread = bars.high - bars.low
    position = np.divide(bars.close - bars.low, spread, out=np.full_like(spread, 0.5), where=spread > 0)
    hour = 2 * np.pi * (bars.time // 3600 % 24) / 24
    volume_deviation = np.maximum(_trailing(log_volume, 24).std(axis=1), 1e-6)
    columns = (
        BASIS_POINTS * returns,
        BASIS_POINTS * _change(log_close, 4),
        BASIS_POINTS * _change(log_close, 24),
        BASIS_POINTS * np.log(bars.high / bars.low),
        position,
        BASIS_POINTS * _trailing(returns, 24).std(axis=1),
        log_volume,
        (log_volume - _trailing(log_volume, 24).mean(axis=1)) / volume_deviation,
        BASIS_POINTS * (log_close - _trailing(log_close, 24).mean(axis=1)),
        BASIS_POINTS * (log_close - _trailing(log_close, 120).mean(axis=1)),
        np.sin(hour),
        np.cos(hour),
    )
    features: npt.NDArray[np.float32] = np.stack(columns, axis=1)[WARM_UP_BARS:].astype(np.float32)
    return features


def _change(values: Values, bars: int) -> Values:
    change: Values = values - np.concatenate([np.full(bars, values[0]), values[:-bars]])
    return change


def _trailing(values: Values, bars: int) -> Values:
    """The last `bars` values at each position, the first value repeated before the start: [n, bars]."""
    padded = np.concatenate([np.full(bars - 1, values[0]), values])
    windows: Values = sliding_window_view(padded, bars)
    return windows
