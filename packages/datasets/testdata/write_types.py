"""Writes columns of types that JSON has no word for, as types.parquet and types.arrow into the folder named first."""

import datetime
import decimal
import sys

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

folder = sys.argv[1]
moment = datetime.datetime(2024, 2, 29, 12, 30, 1, 250)
table = pa.table(
    {
        "int64": pa.array([2**62 + 1, -1, None], pa.int64()),
        "uint64": pa.array([2**64 - 1, 0, None], pa.uint64()),
        "decimal": pa.array([decimal.Decimal("12345678901234567890.10"), decimal.Decimal("-0.05"), None], pa.decimal128(30, 2)),
        "micros": pa.array([moment, datetime.datetime(1960, 1, 1), None], pa.timestamp("us")),
        "day": pa.array([datetime.date(2024, 2, 29), datetime.date(1960, 1, 1), None], pa.date32()),
        "double": pa.array([0.5, float("nan"), None]),
        "flag": pa.array([True, False, None]),
        "lists": pa.array([[[1, 2], [], None], [], None], pa.list_(pa.list_(pa.int32()))),
        "struct": pa.array([{"a": {"b": 2**60}, "c": None}, {"a": None, "c": "x"}, None]),
        "map": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int32())),
        "label": pa.array(["yes", "no", None]).dictionary_encode(),
        "image": pa.array([b"\xff\xd8\xff", b"plain", None], pa.binary()),
        "__proto__": pa.array(["p", "q", None]),
    }
)
pq.write_table(table, f"{folder}/types.parquet")
with ipc.new_stream(f"{folder}/types.arrow", table.schema) as writer:
    writer.write_table(table)

broken = pa.Array.from_buffers(pa.string(), 2, [None, pa.array([0, 2, 4], pa.int32()).buffers()[1], pa.py_buffer(b"ok\xc3\x28")])
table = pa.table({"instruction": broken, "output": pa.array(["a", "b"])})
pq.write_table(table, f"{folder}/broken.parquet")
with ipc.new_stream(f"{folder}/broken.arrow", table.schema) as writer:
    writer.write_table(table)
pq.write_table(pa.table({"instruction": pa.array([1, 2]), "output": pa.array(["a", "b"])}), f"{folder}/wrong-types.parquet")
