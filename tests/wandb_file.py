"""A reader for W&B's offline run file, which has none in public: LevelDB-framed records of wandb.proto."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

_BLOCK, _FRAME = 32768, 7  # LevelDB's log format: 32 KiB blocks; crc (4), length (2), kind (1) before each fragment
_FULL, _FIRST, _LAST = 1, 2, 4


def history(folder: str | Path) -> list[dict[str, Any]]:
    """The history rows of the only offline run below a folder, in order, once the run has ended.

    `wandb.finish` returns before W&B's own process has written everything: the exit record says that it has.
    """
    [file] = Path(folder).glob("**/offline-run-*/run-*.wandb")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        records = [wandb_internal_pb2.Record.FromString(raw) for raw in _records(file.read_bytes())]
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return [_row(record.history.item) for record in records if record.HasField("history")]
        time.sleep(0.1)
    raise TimeoutError(f"{file} was not finished: it holds {len(records)} records, none of them of its exit")


def _row(items: Any) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for item in items:
        *outer, key = item.nested_key or [item.key]
        place = row
        for name in outer:  # a histogram comes as its parts: {"_type": ..., "values": ..., "bins": ...}
            place = place.setdefault(name, {})
        place[key] = json.loads(item.value_json)
    return row


def _records(data: bytes) -> Iterator[bytes]:
    position, parts = 7, b""  # behind the file's own header
    while position + _FRAME <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _FRAME:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        fragment = data[position + _FRAME : position + _FRAME + length]
        position += _FRAME + length
        parts = fragment if kind in (_FULL, _FIRST) else parts + fragment
        if kind in (_FULL, _LAST):
            yield parts
