"""The table of scores, `scores.parquet`: one row for each (set, id, model), columns as `measures` names them.

Reads and writes one Parquet file in S3, by digest. Fails with `ManifestError` when the bytes are not those that were named,
and with `ValueError` when a row holds a column that the table does not know.
"""

import io
from collections.abc import Sequence
from typing import Any

from tasks.contracts import Artifact
from tasks.evaluation.measures import KEYS, MEASURES
from tasks.storage import Storage

NUMBERS = (*(measure.name for measure in MEASURES), *sorted({measure.weight for measure in MEASURES if measure.weight}))
COLUMNS = (*KEYS, *NUMBERS, "answer")


def put_table(storage: Storage, uri: str, rows: Sequence[dict[str, Any]]) -> Artifact:
    """Write rows whose keys are some of COLUMNS; those that a row lacks are null. Returns the artifact, with its rows."""
    import pyarrow
    from pyarrow import parquet

    if unknown := sorted({name for row in rows for name in row} - set(COLUMNS)):
        raise ValueError(f"expected columns of the table of scores ({', '.join(COLUMNS)}), found {unknown}")
    schema = pyarrow.schema([(name, pyarrow.float64() if name in NUMBERS else pyarrow.string()) for name in COLUMNS])
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(rows), schema=schema), buffer)
    written = storage.put_bytes(uri, buffer.getvalue(), content_type="application/vnd.apache.parquet")
    return written.model_copy(update={"rows": len(rows)})


def read_table(storage: Storage, artifact: Artifact) -> list[dict[str, Any]]:
    """Return the rows of a table, with all COLUMNS. Raises ManifestError when its bytes differ."""
    import pyarrow
    from pyarrow import parquet

    rows: list[dict[str, Any]] = parquet.read_table(pyarrow.BufferReader(storage.get(artifact))).to_pylist()
    return rows
