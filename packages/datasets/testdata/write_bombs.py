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

# A list of nulls takes no bytes, however long it says it is; a process that made it would end.
nulls = pa.nulls(500_000_000)
for name, lists in (
    ("nulls.arrow", pa.ListArray.from_arrays(pa.array([0, len(nulls)], pa.int32()), nulls)),
    ("fixed-nulls.arrow", pa.FixedSizeListArray.from_arrays(nulls, len(nulls))),
):
    table = pa.table({"text": lists})
    with pa.ipc.new_stream(out / name, table.schema) as writer:
        writer.write_table(table)

# One row over many pages, which no writer makes: three rows with a page each, of which the second and third are made to go on with the first.
count = 7_000_000
flags = pa.repeat(pa.scalar(False), 3 * count)
lists = pa.ListArray.from_arrays(pa.array([0, count, 2 * count, 3 * count], pa.int32()), flags)
path = out / "endless.parquet"
pq.write_table(pa.table({"text": lists}), path, compression="none", max_rows_per_page=1, data_page_size=1 << 30, use_dictionary=False, write_statistics=False)
whole = path.read_bytes()
footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
pages, table = whole[:footer], whole[footer:]
begins, goes_on = b"\x00\x00\x00\x03\xfe", b"\x00\x00\x00\x03\xff"  # levels of repetition: 0 and ones, or only ones
assert pages.count(begins) == 3
first = pages.index(begins) + len(begins)
rows_of_three, rows_of_one = b"\x16\x06", b"\x16\x02"
assert table.count(rows_of_three) == 2
path.write_bytes(pages[:first] + pages[first:].replace(begins, goes_on) + table.replace(rows_of_three, rows_of_one))
