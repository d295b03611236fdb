"""Writes about a gigabyte of rows as Parquet (one row group, as pyarrow does by itself), an Arrow stream or packed JSON Lines."""

import gzip
import json
import sys

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

path, kind, total = sys.argv[1], sys.argv[2], int(sys.argv[3])
schema = pa.schema(
    [("instruction", pa.string()), ("output", pa.string()), ("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])))]
)
rows = 10_000
text = "The quick brown fox jumps over the lazy dog. " * 11


def batch(at: int) -> pa.RecordBatch:
    even = [n % 2 == 0 for n in range(rows)]

    def talk(n: int) -> list[dict]:
        return [{"role": "user", "content": f"{at + n}?"}, {"role": "assistant", "content": f"{text}{at + n}{text}"}]

    return pa.RecordBatch.from_pydict(
        {
            "instruction": [f"{text}{at + n}" if e else None for n, e in enumerate(even)],
            "output": [f"{at + n} {text}" if e else None for n, e in enumerate(even)],
            "messages": [None if e else talk(n) for n, e in enumerate(even)],
        },
        schema=schema,
    )


batches = range(0, total // 1000, rows)
if kind == "parquet":
    # All columns of one row group are written together, so that it is as large as the file.
    pq.write_table(pa.Table.from_batches([batch(at) for at in batches]), path, compression="none", use_dictionary=False, row_group_size=10**9)
elif kind == "jsonl.gz":
    with gzip.open(path, "wt", compresslevel=1) as writer:
        for at in batches:
            writer.writelines(json.dumps(row) + "\n" for row in batch(at).to_pylist())
else:
    with ipc.new_stream(path, schema) as writer:
        for at in batches:
            writer.write_batch(batch(at))
