"""Small files of far more values than bytes: many columns of one value, and rows that all refer to one large one."""

import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

out = Path(sys.argv[1])

# So many bytes that the number of rows alone is no sign.
pad = "".join(f"{n:08x}" for n in range(12_500))
rows = 5_000_000
wide = pa.table({f"c{i}": pa.repeat(pa.scalar("x"), rows) for i in range(8)})
with pq.ParquetWriter(
    out / "wide.parquet", wide.schema, max_rows_per_page=rows, data_page_size=1 << 30, write_batch_size=rows, write_statistics=False
) as writer:
    writer.add_key_value_metadata({"pad": pad})
    writer.write_table(wide, row_group_size=rows)

large = pa.DictionaryArray.from_arrays(pa.array([0] * 400, pa.int32()), pa.array(["x" * 500_000]))
same = pa.table({"question": large, "answer": pa.repeat(pa.scalar("a"), 400)})
pq.write_table(same, out / "same.parquet")
with pa.ipc.new_stream(out / "same.arrow", same.schema) as writer:
    writer.write_table(same)
