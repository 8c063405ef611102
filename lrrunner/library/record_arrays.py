"""The records of a range test as arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from lrrunner.records import Step
from lrrunner.results.codec import STEP_COLUMNS
from lrrunner.system.plain_values import field_types

if TYPE_CHECKING:
    import pandas as pd


DTYPES: dict[type, type[np.generic]] = {int: np.int64, float: np.float64, bool: np.bool_}


class Records(Mapping[str, npt.NDArray[Any]]):
    """The records of all steps as columns: name -> array of shape (T,).

    The columns are those of ``records.csv``: ``loss`` is the reduced loss in the unit of the loss function,
    ``elapsed_s`` is in seconds, ``timestamp_ms`` in milliseconds since 1970.

    Args:
        steps: Records of all passes and repeats, in order.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        types = field_types(Step)
        self._columns: dict[str, npt.NDArray[Any]] = {
            name: np.array([getattr(step, name) for step in steps], dtype=DTYPES[types[name]]) for name in STEP_COLUMNS
        }

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        return self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __repr__(self) -> str:
        return f"Records({len(self['step'])} steps: {', '.join(self)})"

    def to_pandas(self) -> pd.DataFrame:
        """The columns as a data frame."""
        import pandas as pd

        return pd.DataFrame(self._columns)
