"""Tables for pandas, which is asked for where a frame is made and nowhere else."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ._errors import Unsupported

if TYPE_CHECKING:
    import pandas


def frame_of(rows: Iterable[Mapping[str, Any]]) -> pandas.DataFrame:
    """One row each. Raises Unsupported without pandas."""
    try:
        import pandas
    except ImportError:
        raise Unsupported("[to_pandas] pandas is not installed; expected it: pip install pandas") from None
    return pandas.DataFrame(list(rows))
