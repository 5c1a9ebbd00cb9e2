"""The ArrayRecord files of a store: opened when first read, chunks fetched by position."""

import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from array_record.python.array_record_module import ArrayRecordReader

# What reading a damaged file can raise.
BROKEN = (OSError, KeyError, ValueError, IndexError, RuntimeError, EOFError, zipfile.BadZipFile)
# Random access: nothing is read ahead.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_READER_BUFFER_BYTES = 1 << 15
# ArrayRecord hands a list to its threads. They wait for the disk together, but cost as much as to
# read a small chunk out of the page cache: they pay for many chunks, or large ones.
_SINGLY_UP_TO_CHUNKS = 5
# Well under the 1,024 open files that a process may have.
_MAX_OPEN_FILES = 200


class ShardFiles:
    """Chunks of shards by position. Safe for threads; made anew in each process.

    `locate` gives the local path of a shard. The chunks used last are kept, up to `cache_bytes`.
    `large_chunks` says that they are audio's, which are worth threads whatever their number.
    """

    def __init__(self, locate: Callable[[str], Path], cache_bytes: int, *, large_chunks: bool = False):
        self._locate, self._cache_bytes, self._large_chunks = locate, cache_bytes, large_chunks
        self._readers: OrderedDict[str, ArrayRecordReader] = OrderedDict()
        self._kept: OrderedDict[tuple[str, int], bytes] = OrderedDict()
        self.kept_bytes = 0
        self._lock = threading.Lock()

    def read(self, shard: str, positions: Sequence[int]) -> list[bytes]:
        """Returns the chunks at `positions` of a shard.

        Raises what ArrayRecord raises, one of BROKEN.
        """
        found = self._recall(shard, positions)
        missing = [position for position in positions if position not in found]
        if missing:
            values = self._fetch(self._reader(shard), missing)
            found.update(zip(missing, values, strict=True))
            self._keep(shard, missing, values)
        return [found[position] for position in positions]

    def _fetch(self, reader: ArrayRecordReader, positions: Sequence[int]) -> list[bytes]:
        if self._large_chunks or len(positions) > _SINGLY_UP_TO_CHUNKS:
            return reader.read(positions)
        return [reader.read([position])[0] for position in positions]

    def _recall(self, shard: str, positions: Sequence[int]) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        if self._cache_bytes:
            with self._lock:
                for position in positions:
                    if (shard, position) in self._kept:
                        self._kept.move_to_end((shard, position))
                        found[position] = self._kept[shard, position]
        return found

    def _keep(self, shard: str, positions: Sequence[int], values: Sequence[bytes]) -> None:
        if not self._cache_bytes:
            return
        with self._lock:
            for position, value in zip(positions, values, strict=True):
                if (shard, position) not in self._kept:
                    self._kept[shard, position] = value
                    self.kept_bytes += len(value)
            while self.kept_bytes > self._cache_bytes:
                self.kept_bytes -= len(self._kept.popitem(last=False)[1])

    def _reader(self, shard: str) -> ArrayRecordReader:
        with self._lock:
            if shard in self._readers:
                self._readers.move_to_end(shard)
                return self._readers[shard]
        path = self._locate(shard)
        with self._lock:
            if shard not in self._readers:
                options = {"options": _READER_OPTIONS, "file_reader_buffer_size": _READER_BUFFER_BYTES}
                self._readers[shard] = ArrayRecordReader(str(path), **options)
            # One that another thread is reading lives on until that is done.
            while len(self._readers) > _MAX_OPEN_FILES:
                self._readers.popitem(last=False)
            return self._readers[shard]
