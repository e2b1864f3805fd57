"""Reads a lake by every reader of its format: `readers.py LAKE FORMAT TRUTH`.
The truth is {stream: [[offset, id], …]}; each must be there once."""
import gzip, json, os, sys

lake, form, truth = sys.argv[1], sys.argv[2], json.load(open(sys.argv[3]))
SUFFIXES = {"parquet": ("parquet",), "avro": ("avro",), "ndjson": ("ndjson", "gz", "zst")}[form]


def pairs(columns):
    ids = columns.get("id") or [None] * len(columns["_hw_offset"])
    return list(zip(columns["_hw_offset"], ids))


def duckdb_parquet(files):
    import duckdb
    return duckdb.execute("SELECT _hw_offset, id FROM read_parquet(?, union_by_name = true)", [files]).fetchall()


def duckdb_ndjson(files):
    import duckdb
    sql = "SELECT _hw_offset, id FROM read_json(?, format = 'newline_delimited', union_by_name = true, sample_size = -1)"
    return duckdb.execute(sql, [files]).fetchall()


def polars_parquet(files):
    import polars as pl
    return [pair for f in files for pair in pairs(pl.read_parquet(f).to_dict(as_series=False))]


def polars_avro(files):
    import polars as pl
    return [pair for f in files for pair in pairs(pl.read_avro(f).to_dict(as_series=False))]


def polars_ndjson(files):
    import polars as pl
    return [pair for f in files for pair in pairs(pl.read_ndjson(f, infer_schema_length=None).to_dict(as_series=False))]


def pyarrow_parquet(files):
    import pyarrow.parquet as pq
    return [pair for f in files for pair in pairs(pq.read_table(f, partitioning=None).to_pydict())]


def pyarrow_ndjson(files):
    import pyarrow as pa, pyarrow.json as pj
    kinds = {"gz": "gzip", "zst": "zstd"}
    # Left alone, it takes lists of texts for lists of times.
    schema = pa.schema([("_hw_offset", pa.int64()), ("id", pa.int64())])
    how = pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    read = lambda f: pj.read_json(pa.input_stream(f, compression=kinds.get(f.rsplit(".", 1)[1])), parse_options=how)
    return [pair for f in files for pair in pairs(read(f).to_pydict())]


def fastavro_avro(files):
    import fastavro
    return [(row["_hw_offset"], row["id"]) for f in files for row in fastavro.reader(open(f, "rb"))]


def plain_ndjson(files):
    def lines(f):
        if f.endswith(".zst"):
            from backports import zstd
            return zstd.open(f, "rt")
        return gzip.open(f, "rt") if f.endswith(".gz") else open(f)
    rows = (json.loads(line) for f in files for line in lines(f))
    return [(row["_hw_offset"], row.get("id")) for row in rows]


def codec(f):
    import fastavro
    return fastavro.reader(open(f, "rb")).codec


said = []
for stream, expected in truth.items():
    folder = os.path.join(lake, stream)
    files = [os.path.join(at, name) for at, _, names in os.walk(folder) for name in names]
    files = sorted(f for f in files if f.rsplit(".", 1)[1] in SUFFIXES)
    assert files, f"{stream} has no files in {folder}"
    readers = [(name, read) for name, read in globals().items() if name.endswith("_" + form) and callable(read)]
    # polars knows of Avro's codecs deflate and snappy alone.
    if form == "avro" and codec(files[0]) == "zstandard":
        readers = [(name, read) for name, read in readers if name != "polars_avro"]
    for name, read in readers:
        found = sorted(read(files))
        offsets = [offset for offset, _ in found]
        assert offsets == [offset for offset, _ in expected], f"{name} of {stream}: {len(offsets)} offsets, not {len(expected)}"
        wrong = [(a, b) for a, b in zip(found, expected) if b[1] != "?" and a[1] != b[1]]
        assert not wrong, f"{name} of {stream}: {wrong[:5]}"
        said.append(f"{name} {len(found)}")
print(", ".join(said))
