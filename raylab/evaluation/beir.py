"""The mean over BEIR's 13 sets, which says it when it is over fewer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from raylab.data.registry import BEIR_SETS
from raylab.experiment.config import ConfigError


@dataclass(frozen=True)
class BeirMean:
    """The unweighted mean of one measure over BEIR's sets; ``missing`` are those it lacks."""

    value: float
    sets: tuple[str, ...]
    missing: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.missing:
            return f"{self.value:.4f} over the {len(self.sets)} BEIR sets"
        return (
            f"{self.value:.4f} over {len(self.sets)} of the {len(BEIR_SETS)} BEIR sets, "
            f"without {', '.join(self.missing)}"
        )


def beir_mean(values: Mapping[str, float], partial: bool = False) -> BeirMean:
    """Mean of a measure over BEIR's 13 sets, given its value on the split test of each by name.

    Args:
        partial: a mean over fewer is wanted; it names those that are missing.

    Raises:
        ConfigError: sets are missing and ``partial`` is false, a name that is no set of BEIR's, a
            value that is not finite, or no value at all.
    """
    unknown = sorted(set(values) - set(BEIR_SETS))
    if unknown:
        raise ConfigError(f"{', '.join(unknown)}: not of BEIR, which has {', '.join(BEIR_SETS)}")
    wrong = next((name for name, value in values.items() if not math.isfinite(value)), None)
    if wrong is not None:
        raise ConfigError(f"{wrong}: the value {values[wrong]} is not finite")
    missing = tuple(name for name in BEIR_SETS if name not in values)
    if not values or (missing and not partial):
        raise ConfigError(
            f"a BEIR mean is over {len(BEIR_SETS)} sets; missing: {', '.join(missing)}"
        )
    present = tuple(name for name in BEIR_SETS if name in values)
    return BeirMean(math.fsum(values[name] for name in present) / len(present), present, missing)
