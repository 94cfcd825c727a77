"""The order of versions, and which one `latest` is. Pure.

Versions sort by PEP 440, with a leading `v` optional; semantic-versioning pre-releases that PEP 440 doesn't know
(`1.0.0-nightly.3`) sort within their release, below all that PEP 440 knows. What parses as neither sorts by the time
of its registration, below everything that parses.

Source: https://packaging.python.org/en/latest/specifications/version-specifiers/ and https://semver.org (section 11).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import total_ordering

from packaging.version import InvalidVersion, Version

LATEST = "latest"
MODEL_TYPE_PATTERN = r"^[a-z][a-z0-9_]{0,63}$"
VERSION_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$"
ALIAS_PATTERN = r"^[a-z][a-z0-9_-]{0,63}$"

_SEMVER_PRE_RELEASE = re.compile(
    r"^[vV]?(\d{1,18}(?:\.\d{1,18})*)-([0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)(?:\+.*)?$"
)
# Longer ones aren't versions that anyone counts up; parsing them into integers could take long.
_LONGEST_PARSED = 64

Identifier = tuple[int, int, str]


@total_ordering
@dataclass(frozen=True, slots=True, kw_only=True)
class VersionOrder:
    """A version's place in the order; greater is newer."""

    text: str
    registered_at: float
    parsed: Version | None
    release: tuple[int, ...]
    semver_pre: tuple[Identifier, ...] | None

    @property
    def is_pre_release(self) -> bool:
        """Whether `latest` passes over it while there is something else."""
        return self.semver_pre is not None or (self.parsed is not None and self.parsed.is_prerelease)

    @property
    def _rank(self) -> tuple[int, int, tuple[int, ...], int, tuple[Identifier, ...]]:
        if self.parsed is not None:
            return (1, self.parsed.epoch, self.release, 1, ())
        if self.semver_pre is not None:
            return (1, 0, self.release, 0, self.semver_pre)
        return (0, 0, (), 0, ())

    def __lt__(self, other: "VersionOrder") -> bool:
        """Older than `other`."""
        if self._rank != other._rank:
            return self._rank < other._rank
        if self.parsed is not None and other.parsed is not None and self.parsed != other.parsed:
            return self.parsed < other.parsed
        # Spellings of one version (1.0, v1.0), or versions that don't parse.
        return (self.registered_at, self.text) < (other.registered_at, other.text)


def order_of(version: str, registered_at: float) -> VersionOrder:
    """Places a version in the order.

    Args:
        version: As given at registration.
        registered_at: Wall time in seconds; decides between versions that don't parse.
    """
    parsed: Version | None = None
    release: tuple[int, ...] = ()
    semver_pre: tuple[Identifier, ...] | None = None
    if len(version) <= _LONGEST_PARSED:
        try:
            parsed = Version(version)
        except InvalidVersion:
            match = _SEMVER_PRE_RELEASE.match(version)
            if match:
                release = _significant(int(part) for part in match[1].split("."))
                semver_pre = tuple(_identifier(part) for part in match[2].split("."))
        else:
            release = _significant(parsed.release)
    return VersionOrder(
        text=version, registered_at=registered_at, parsed=parsed, release=release, semver_pre=semver_pre
    )


def newest_first(orders: Iterable[VersionOrder]) -> list[VersionOrder]:
    """Sorts, newest first."""
    return sorted(orders, reverse=True)


def latest_of(orders: Iterable[VersionOrder]) -> VersionOrder | None:
    """The newest that isn't a pre-release; the newest pre-release where there is nothing else."""
    ordered = newest_first(orders)
    return next((order for order in ordered if not order.is_pre_release), ordered[0] if ordered else None)


def spellings_of(version: str) -> tuple[str, ...]:
    """The version as given, then with its leading `v` dropped or added."""
    if version[:1] in {"v", "V"}:
        return (version, version[1:])
    return (version, f"v{version}")


def _significant(parts: Iterable[int]) -> tuple[int, ...]:
    numbers = list(parts)
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _identifier(text: str) -> Identifier:
    return (0, int(text), "") if text.isdigit() and text.isascii() else (1, 0, text)
