"""Writes the rows it reads from standard input (JSON Lines) in every binary container, with pyarrow, into the folder named first."""

import json
import sys

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.ipc as ipc
import pyarrow.parquet as pq

folder = sys.argv[1]
rows = [json.loads(line) for line in sys.stdin]
table = pa.Table.from_pylist(rows)

for codec in ["none", "snappy", "gzip", "brotli", "zstd", "lz4"]:
    pq.write_table(table, f"{folder}/{codec}.parquet", compression=codec, row_group_size=100, data_page_size=200)
pq.write_table(table, f"{folder}/v2.parquet", data_page_version="2.0", use_dictionary=False, data_page_size=200)
pq.write_table(table, f"{folder}/one-group.parquet", write_page_index=True)
pq.write_table(table.slice(0, 0), f"{folder}/empty.parquet")

for codec in ["uncompressed", "lz4", "zstd"]:
    feather.write_feather(table, f"{folder}/{codec}.feather", compression=codec, chunksize=70)
with ipc.new_stream(f"{folder}/stream.arrow", table.schema) as writer:
    writer.write_table(table, max_chunksize=60)
encoded = pa.table({name: table[name].dictionary_encode() if pa.types.is_string(table[name].type) else table[name] for name in table.column_names})
with ipc.new_stream(f"{folder}/dictionary.arrow", encoded.schema) as writer:
    writer.write_table(encoded, max_chunksize=60)
large = table.cast(pa.schema([pa.field(f.name, pa.large_string() if pa.types.is_string(f.type) else f.type) for f in table.schema]))
with ipc.new_file(f"{folder}/large.arrow", large.schema) as writer:
    writer.write_table(large, max_chunksize=60)
views = table.cast(pa.schema([pa.field(f.name, pa.string_view() if pa.types.is_string(f.type) else f.type) for f in table.schema]))
with ipc.new_stream(f"{folder}/views.arrow", views.schema) as writer:
    writer.write_table(views, max_chunksize=60)
