"""Map every shard of a prepared split at once: `map_all.py FOLDER`."""

from __future__ import annotations

import pathlib
import sys

import pyarrow as pa


def main() -> None:
    shards = [pa.memory_map(str(path), "rb") for path in sorted(pathlib.Path(sys.argv[1]).glob("shard-*.arrow"))]
    print(f"mapped {sum(shard.size() for shard in shards)} bytes")


if __name__ == "__main__":
    main()
