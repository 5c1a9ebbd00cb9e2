"""Decoding of any media file in the file's own time. NumPy, soundfile and PyAV; no JAX.

libsndfile reads uncompressed sound. FFmpeg's decoders in PyAV read everything else, because they
give the presentation time of every packet: a gap, a late start and a damaged packet become silence.
"""

import io
import os
import stat
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import soundfile
from jaxtyping import Float32

from unils_jax.errors import UserError, shown

if TYPE_CHECKING:
    from fractions import Fraction

    import av

# A gap or a late start beyond an hour is a broken clock, not silence that belongs to the recording.
MAX_GAP_S = 3_600.0
# A container of pictures is said to begin or end apart from its sound from this difference on.
SAID_S = 0.04
_BLOCK = 1 << 18

# libsndfile reads these too, but hides damage, and reads the first stream of a chain alone.
_COMPRESSED = {"OGG", "FLAC", "MP3", "MPEG"}
# Raw streams without clocks: FFmpeg counts packets there, and its times lack what damage swallowed.
_UNCLOCKED = {"mp3", "aac", "loas", "ac3", "eac3", "dts", "dtshd", "mlp", "truehd", "amr", "amrnb", "amrwb"}
# Zero on the clock of these formats is the start of the recording; elsewhere it is arbitrary.
FROM_ZERO = {"matroska,webm", "mov,mp4,m4a,3gp,3g2,mj2", "avi", "flv", "nut", "asf"}
_TAGS = (b"ID3", b"TAG", b"APETAGEX", b"LYRICSBEGIN")

# FFmpeg's formats of pictures, text and raw video; suffixes that mostly belong to other files.
_SILENT_FORMATS = set(
    "image2 gif apng apv fits ico ass srt webvtt microdvd jacosub mpl2 mpsub pjs realtext sami scc stl subviewer "
    "subviewer1 sup tty vobsub vplayer lrc mcc aqtitle ffmetadata sbg cdg webp avif ttml rawvideo h261 h263 h264 hevc "
    "vvc evc vc1 av1 obu avs2 avs3 cavsvideo mjpeg mjpeg_2000 mpjpeg smjpeg ingenient v210 v210x yuv4mpegpipe "
    "bitpacked dirac dnxhd m4v idf adf filmstrip jpegxl_anim ipu hxvs pdv simbiosis_imx ser hls dash "
    "webm_dash_manifest webm_chunk mpeg1video mpeg2video a64 ivf fbdev".split()
)
_AMBIGUOUS = set("avif heic heif str 302 bit dat v xl idx sf al ul sw sb uw ub pcm tun mks dtk sol afc drc".split())
# Suffixes in use that FFmpeg's own lists leave out.
_ALSO = set("wave bwf rf64 snd ogx weba m4r f4a qt awb".split())

Block = Float32[np.ndarray, "C _"]


@lru_cache(maxsize=1)
def media_extensions() -> frozenset[str]:
    """Returns the suffixes of the formats that hold sound, in lower case and with their dot."""
    import av  # noqa: PLC0415  FFmpeg's libraries load for files that need them

    found = set(_ALSO)
    for name in av.formats_available - _SILENT_FORMATS:
        for mode in "rw":
            try:
                found |= av.format.ContainerFormat(name, mode).extensions
            except ValueError:
                continue
    return frozenset(f".{suffix.strip().lower()}" for suffix in found - _AMBIGUOUS)


def is_media(path: str | os.PathLike) -> bool:
    """Returns whether a file's suffix, in any case, is one of a format that holds sound."""
    return os.path.splitext(os.fspath(path))[1].lower() in media_extensions()


class NoSoundError(UserError):
    """A media file without an audio track, like a video of pictures alone."""


@runtime_checkable
class Sink(Protocol):
    """Where decoded sound goes, in the order of the file, and sentences that have to be said."""

    name: str
    notices: list[str]

    @property
    def seconds(self) -> float:
        """Length so far."""

    def restart(self) -> None:
        """Begins the next link of a chain: its clock starts at zero where the one before ended."""

    def add(self, block: Block, rate: int, time: float | None = None, *, damaged: bool = False) -> None:
        """Appends samples of `time` (None: at the end). `damaged`: some before them are lost."""

    def lose(self, time: float) -> None:
        """Ends with damage that reaches up to `time`."""


def decode_media(path: Path, track: int, sink: Sink) -> None:
    """Decodes one audio track into `sink`.

    `track` counts from 1; 0 takes the first and says where there are more. Raises UserError, naming
    the file, where it cannot be opened, holds no sound that can be read, is empty (0 bytes), or has
    no such track.
    """
    name, size = sink.name, _checked_size(path, sink.name)
    try:
        with open(path, "rb") as file:
            if not _read_uncompressed(file, path, track, sink):
                for number, (start, end) in enumerate(_links(file, size)):
                    _read_container(_Window(file, str(path), start, end), track, sink, is_first=number == 0)
    except OSError as error:
        raise UserError(f"audio file {name} cannot be read ({error.strerror or error}); check the file") from None


def _checked_size(path: Path, name: str) -> int:
    """Returns a file's bytes. Raises UserError for what is no file, and for an empty one."""
    try:
        info = os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        raise UserError(f"audio file {name} does not exist; check the path") from None
    except OSError as error:
        raise UserError(f"audio file {name} cannot be read ({error.strerror}); check the path") from None
    if stat.S_ISDIR(info.st_mode):
        raise UserError(f"audio file {name} is a folder, not an audio file; check the path")
    if not stat.S_ISREG(info.st_mode):
        raise UserError(f"audio file {name} is no regular file; save the sound to a file first")
    if not info.st_size:
        raise UserError(f"audio file {name} is empty (0 bytes); give a file with sound in it")
    return info.st_size


def _read_uncompressed(file: io.BufferedReader, path: Path, track: int, sink: Sink) -> bool:
    """Reads a file with libsndfile; False where FFmpeg has to."""
    head = file.read(4)
    if head.startswith((b"OggS", b"fLaC", b"ID3")) or (head[:1] == b"\xff" and head[1:2] >= b"\xe0"):
        return False
    try:
        # Bytes reach names that are not UTF-8.
        sound = soundfile.SoundFile(os.fsencode(path))
    except (soundfile.LibsndfileError, OSError, RuntimeError, TypeError):
        return False
    with sound:
        # No frames: a recorder that was cut off leaves a size of zero in the header, and FFmpeg
        # reads what follows.
        if sound.format in _COMPRESSED or not sound.frames:
            return False
        if track > 1:
            raise UserError(f"{sink.name} has 1 audio track, there is no track {track}; name one of them")
        try:
            size = max(1, 4 * _BLOCK // sound.channels)
            # `sound.blocks` refuses codecs that cannot seek, like GSM's.
            while len(block := sound.read(size, dtype="float32", always_2d=True)):
                sink.add(block.T, sound.samplerate)
        except soundfile.LibsndfileError:
            sink.notices.append(f"damaged at {sink.seconds:.2f} s; nothing after it was read")
    return True


class _Window:
    """Part of an open file for FFmpeg, which so never takes a name for a protocol."""

    def __init__(self, file: io.BufferedReader, name: str, start: int, end: int):
        self.file, self.name, self.start, self.size, self.at = file, name, start, end - start, 0

    def read(self, size: int) -> bytes:
        """Returns up to so many bytes."""
        if self.at >= self.size:  # damaged headers point as far as no file reaches
            return b""
        self.file.seek(self.start + self.at)
        piece = self.file.read(min(size, self.size - self.at))
        self.at += len(piece)
        return piece

    def seek(self, offset: int, whence: int = 0) -> int:
        """Sets the offset as a file does, and returns it."""
        self.at = max(0, offset + (0, self.at, self.size)[whence])
        return self.at

    def tell(self) -> int:
        """Returns the offset."""
        return self.at

    def peek(self, at: int, size: int) -> bytes:
        """Returns bytes from an offset, without moving."""
        return os.pread(self.file.fileno(), min(size, self.size - at), self.start + at) if at < self.size else b""


def _links(file: io.BufferedReader, size: int) -> list[tuple[int, int]]:
    """Returns where each stream of a chained Ogg file begins and ends; any other file is one."""
    starts, at, in_heads = [0], 0, True
    file.seek(0)
    while len(head := file.read(27)) == 27 and head[:4] == b"OggS":
        begins = bool(head[5] & 2)
        if begins and not in_heads:
            starts.append(at)
        in_heads = begins
        at += 27 + head[26] + sum(file.read(head[26]))
        file.seek(at)
        if at < size and file.peek(4)[:4] != b"OggS":
            at = _next_page(file, at, size)
            file.seek(at)
    return list(zip(starts, [*starts[1:], size], strict=True))


def _next_page(file: io.BufferedReader, at: int, size: int) -> int:
    """Returns where the first Ogg page after `at` begins; only damage parts two pages."""
    while at < size:
        file.seek(at)
        found = file.read(_BLOCK).find(b"OggS")
        if found >= 0:
            return at + found
        at += _BLOCK - 3
    return size


def _read_container(window: _Window, track: int, sink: Sink, *, is_first: bool) -> None:
    """Decodes a track with FFmpeg. Raises UserError where nothing can be read."""
    import av  # noqa: PLC0415  FFmpeg's libraries load for files that need them

    sink.restart()
    before = sink.seconds
    try:
        # No protocol: a playlist or a reference inside the file opens nothing else.
        options = {"protocol_whitelist": "none"}
        with av.open(window, metadata_errors="replace", options=options) as container:
            stream = _choose(container, track, sink, is_first=is_first)
            _Decoder(container, stream, sink, window).run()
    except (av.FFmpegError, OSError, ValueError, LookupError, MemoryError) as error:
        if is_first and isinstance(error, UserError):
            raise
        if is_first and sink.seconds == before:
            raise UserError(_refusal(sink.name, error)) from None
        sink.notices.append(f"cannot be read beyond {sink.seconds:.2f} s ({_reason(error)})")


def _choose(container: "av.container.InputContainer", track: int, sink: Sink, *, is_first: bool) -> "av.AudioStream":
    """Returns the stream of a track. Raises UserError where there is none or no decoder for it."""
    streams = container.streams.audio
    if not streams:
        raise NoSoundError(f"{sink.name} has no audio track; give a file with sound in it")
    if track > len(streams):
        raise UserError(f"{sink.name} has {_listed(streams)}; there is no track {track}, name one of them")
    if len(streams) > 1 and not track and is_first:
        sink.notices.append(f"has {_listed(streams)}; track 1 was read, the others can be named")
    stream = streams[max(track, 1) - 1]
    if stream.codec_context is None:
        raise UserError(
            f"{sink.name} holds sound that neither libsndfile nor FFmpeg can decode, or its header is damaged; "
            "convert it to PCM wav"
        )
    return stream


def _listed(streams: "tuple[av.AudioStream, ...]") -> str:
    tracks = []
    for number, stream in enumerate(streams, 1):
        codec = stream.codec_context.name if stream.codec_context else "no decoder"
        about = [stream.metadata.get("title"), stream.metadata.get("language"), codec]
        tracks.append(f"{number}: {', '.join(shown(word)[:60] for word in about if word)}")
    return f"{len(tracks)} audio track{'s' * (len(tracks) > 1)} ({'; '.join(tracks)})"


class _Decoder:
    """One stream's packets, decoded one by one; what cannot be decoded is noted and passed over."""

    def __init__(self, container: "av.container.InputContainer", stream: "av.AudioStream", sink: Sink, window: _Window):
        self.container, self.stream, self.sink, self.window = container, stream, sink, window
        self.link_start = sink.seconds
        self.is_clocked = container.format.name not in _UNCLOCKED
        # FFmpeg skips checksums by default: damaged frames of these codecs would be noise.
        self.is_summed = stream.codec_context.name in ("flac", "wavpack", "tta")
        covers = type(stream.disposition).attached_pic
        pictures = [video for video in container.streams.video if not video.disposition & covers]
        self.picture_start = min((_clock(p.start_time, p.time_base) for p in pictures), default=None)
        self.base = self._base()
        # Of good packets: their bytes and samples give the time of a damaged packet without clock.
        self.num_bytes = self.num_samples = 0
        self.first_s = 0.0  # duration of the first packet
        self.next_pos: int | None = None  # where the next packet should begin
        # Of bad packets since the last good one: their bytes and the end of the last, on the clock.
        self.bad_bytes, self.bad_end = 0, 0.0
        self.error: Exception | None = None

    def run(self) -> None:
        """Decodes everything. Raises the first error where no packet can be decoded."""
        if self.is_summed:
            self.stream.codec_context.options = {"err_detect": "crccheck+explode"}
        for number, packet in enumerate(self.container.demux(self.stream)):
            if not number:
                self.first_s = _clock(packet.duration, packet.time_base)
            for frame in self._decode(packet):
                self._add(frame)
        if self.error is not None and not self.num_samples:
            raise self.error
        if self.bad_bytes:
            self.sink.lose(self._lost_time())
        self._compare_ends()

    def _base(self) -> float:
        """Returns the clock's time at which the recording begins, in seconds."""
        start = (self.container.start_time or 0) / 1e6
        if self.container.format.name not in FROM_ZERO or start > MAX_GAP_S:
            return start
        # Sound alone starts late for a partner's file; with a picture, players begin where the
        # first of both does.
        return 0.0 if self.picture_start is None else max(0.0, start)

    def _decode(self, packet: "av.Packet") -> list["av.AudioFrame"]:
        import av  # noqa: PLC0415  FFmpeg's libraries load for files that need them

        if packet.size and not self.is_clocked:
            self._note_skipped(packet)
            head = bytes(packet)[:64]
            if head.startswith(_TAGS) or b"Xing" in head or b"Info" in head:
                return []  # the head of a further file in a chain, whose sound comes after it
        try:
            frames = packet.decode()
        except (av.FFmpegError, ValueError) as error:
            self.error = self.error or error
            frames = []
            is_bad = packet.size > 0
        else:
            is_bad = self.is_summed and packet.size > 0 and not frames and self.num_samples > 0
        if is_bad:
            self.bad_bytes += packet.size
            self.bad_end = _clock(packet.pts, packet.time_base) + _clock(packet.duration, packet.time_base) - self.base
        elif frames:
            self.num_bytes += packet.size
        return frames

    def _note_skipped(self, packet: "av.Packet") -> None:
        """Counts the bytes between packets, where FFmpeg found no frame, as damage unless tags.

        FFmpeg's positions leave skipped bytes out, so the packet is looked up in the file.
        """
        head = bytes(packet)[:16]
        if self.next_pos is None:
            self.next_pos = packet.pos or 0
        elif self.next_pos < self.window.size and self.window.peek(self.next_pos, len(head)) != head:
            ahead = self.window.peek(self.next_pos, _BLOCK)
            skipped = ahead.find(head)
            if skipped < 0:
                self.next_pos = self.window.size  # lost for good: nothing more is looked up
                return
            self.bad_bytes += 0 if ahead.startswith(_TAGS) else skipped
            self.next_pos += skipped
        self.next_pos += packet.size

    def _add(self, frame: "av.AudioFrame") -> None:
        time = None
        if not self.num_samples and not self.bad_bytes and self.stream.codec_context.name == "vorbis":
            # FFmpeg counts the first packet as time, though it only begins an overlap.
            self.base += min(_clock(frame.pts, frame.time_base) - self.base, self.first_s)
        if self.is_clocked and frame.pts is not None:
            time = _clock(frame.pts, frame.time_base) - self.base
        elif self.bad_bytes:
            time = self._lost_time()
        if not self.num_samples and time is not None and not self.bad_bytes:
            self._compare_starts(time)
        self.sink.add(_samples(frame), frame.sample_rate, time, damaged=self.bad_bytes > 0)
        self.num_samples += frame.samples
        self.bad_bytes = 0

    def _lost_time(self) -> float:
        """Returns where damage ends: by the clock, or by the mean bytes of a sample."""
        if self.is_clocked:
            return self.bad_end
        lost = self.bad_bytes * self.num_samples / max(1, self.num_bytes)
        return self.sink.seconds - self.link_start + lost / self.stream.codec_context.sample_rate

    def _compare_starts(self, time: float) -> None:
        say = self.sink.notices.append
        if time > MAX_GAP_S:
            return
        if time > SAID_S:
            after = "after the picture" if self.picture_start is not None else "after the file's time zero"
            say(f"its sound starts {time:.2f} s {after}; silence was put there")
        elif time < -SAID_S:
            say(f"its sound starts {-time:.2f} s before the file's time zero; that part was cut off")
        if self.picture_start is not None and self.picture_start - self.base - max(0.0, time) > 5 * SAID_S:
            say(
                f"its picture starts {self.picture_start - self.base:.2f} s after the file; motion starts with the file"
            )

    def _compare_ends(self) -> None:
        if self.container.format.name not in FROM_ZERO or not self.container.duration:
            return
        end = self.container.duration / 1e6 - self.base
        reached = self.sink.seconds - self.link_start
        if end - reached > 0.5:
            why = " by its header: it is damaged or cut short" if self.picture_start is None else ""
            self.sink.notices.append(f"its sound ends at {reached:.2f} s, the file at {end:.2f} s{why}")


def _clock(time: int | None, time_base: "Fraction | None") -> float:
    return float(time * time_base) if time is not None and time_base else 0.0


def _samples(frame: "av.AudioFrame") -> Block:
    """Returns a frame's samples, full scale as 1."""
    array = frame.to_ndarray()
    if not frame.format.is_planar:
        array = array.reshape(-1, frame.layout.nb_channels).T
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128) / 128
    scale = 1.0 if array.dtype.kind == "f" else -1.0 / np.iinfo(array.dtype).min
    return array.astype(np.float32) * np.float32(scale)


def _refusal(name: str, error: Exception) -> str:
    import av  # noqa: PLC0415  FFmpeg's libraries load for files that need them

    # Unknown data are the file's fault; the rest (a codec left out, no memory) is FFmpeg's.
    if isinstance(error, av.InvalidDataError | av.EOFError | av.ArgumentError):
        return f"{name} is not an audio file that libsndfile or FFmpeg can read; convert it to wav"
    return f"FFmpeg cannot decode {name} ({_reason(error)}); convert it to wav"


def _reason(error: Exception) -> str:
    return shown(getattr(error, "strerror", None) or str(error) or type(error).__name__)[:120]
