"""Reads the hourly EUR/USD bars of 2017 that come with gym-anytrading (MIT licence)."""

import csv
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

FILE_NAME = "FOREX_EURUSD_1H_ASK.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Hourly bars, oldest first; closed weekends are simply absent.

    `time` int64 [bars] is each bar's start in seconds since the epoch, UTC; prices are in US dollars for a
    euro, float64 [bars]; `volume` float64 [bars].
    """

    time: npt.NDArray[np.int64]
    open: npt.NDArray[np.float64]
    high: npt.NDArray[np.float64]
    low: npt.NDArray[np.float64]
    close: npt.NDArray[np.float64]
    volume: npt.NDArray[np.float64]


def find_bars_file() -> Path:
    """Finds the file in the installed gym-anytrading, without importing it.

    Raises:
        FileNotFoundError: gym-anytrading is not installed, or has no such file.
    """
    package = find_spec("gym_anytrading")
    for folder in (package and package.submodule_search_locations) or ():
        path = Path(folder) / "datasets" / "data" / FILE_NAME
        if path.is_file():
            return path
    raise FileNotFoundError(f"{FILE_NAME} is not installed; it comes with: pip install 'model-serving[demo]'")


def read_bars(path: Path) -> Bars:
    """Reads the bars of a CSV file with the columns Time, Open, High, Low, Close, Volume."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    times = [datetime.strptime(row["Time"], "%d.%m.%Y %H:%M:%S.%f").replace(tzinfo=UTC) for row in rows]

    def column(name: str) -> npt.NDArray[np.float64]:
        return np.array([row[name] for row in rows], dtype=np.float64)

    return Bars(
        time=np.array([int(time.timestamp()) for time in times], dtype=np.int64),
        open=column("Open"),
        high=column("High"),
        low=column("Low"),
        close=column("Close"),
        volume=column("Volume"),
    )
