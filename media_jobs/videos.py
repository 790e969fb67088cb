"""Videos by their content: what the first bytes tell, how long and how large they are, and a poster.

Nothing here knows of the database, the ledger or the storage.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any, NoReturn

import av
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from django.conf import settings
from PIL import Image, ImageStat

from media_jobs.errors import NotUsable
from media_jobs.pictures import as_webp

NAMES = "MP4, MOV, WebM, Matroska or AVI"
# Longest side of the poster.
POSTER_PIXELS = 1280
# Many videos fade in from black: the poster is the first frame from here on that shows something.
POSTER_FROM_SECONDS = 1.0
POSTER_UNTIL_SECONDS = 5.0
# Out of 255. What is darker on the average is taken for black.
DARK_BELOW = 24
# How much of its declared length a whole file may lack: the last frames of a track often have no length of their own.
MISSING_SECONDS = 1.0
MISSING_SHARE = 0.05
# How long FFmpeg may wait for one read; the job's own limits end what burns processor time.
READ_TIMEOUT_SECONDS = 30
_HEADER_BYTES = 64
# ISO/IEC 14496-12: brands of files in the same container that are pictures.
_PICTURE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heif", b"mif1", b"msf1")

Report = Callable[[float, float, str], None]
_DAMAGED = "The video is damaged or not complete."


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What was found out about a video, and its poster as a WebP file."""

    duration_seconds: float
    width_pixels: int
    height_pixels: int
    poster: bytes


def read_container(file: IO[bytes]) -> str:
    """The container of a video as FFmpeg names it, by its first bytes. Raises NotUsable with a sentence.

    FFmpeg is told this name later and guesses nothing: a playlist that names files of ours, or addresses in our
    network, is no video here.
    """
    file.seek(0)
    start = file.read(_HEADER_BYTES)
    file.seek(0)
    if start[4:8] == b"ftyp" and start[8:12] not in _PICTURE_BRANDS:
        return "mov"
    if start.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    if start.startswith(b"RIFF") and start[8:12] == b"AVI ":
        return "avi"
    raise NotUsable(f"This is not a video that can be read. Send an {NAMES} file.")


def examine(file: IO[bytes], *, container_format: str, report: Report) -> Facts:
    """Reads a video from its first to its last packet, and decodes its first seconds for the poster.

    `report` hears how far it is: done, total, a message. Raises NotUsable for what is no video, damaged, cut off, or
    too large to decode.
    """
    try:
        with _opened(file, container_format) as container:
            stream = _video_stream(container)
            report(5, 100, "Making the poster")
            frame, dark = None, -1.0
            for candidate in _first_frames(container, stream):
                brightness = _brightness(candidate)
                if brightness > dark:
                    frame, dark = candidate, brightness
                if brightness >= DARK_BELOW:
                    break
            if frame is None:
                raise NotUsable("The video has no picture in it that can be read.")
            poster = _upright(frame, stream)
            width, height = _displayed_size(frame, stream)
        with _opened(file, container_format) as container:
            duration_seconds = _measured_seconds(container, report)
    except (av.FFmpegError, IndexError, OverflowError) as error:
        raise NotUsable(_DAMAGED) from error
    return Facts(duration_seconds=duration_seconds, width_pixels=width, height_pixels=height, poster=as_webp(poster))


def _opened(file: IO[bytes], container_format: str) -> InputContainer:
    file.seek(0)
    return av.open(
        file,
        mode="r",
        format=container_format,
        metadata_errors="replace",
        timeout=READ_TIMEOUT_SECONDS,
        io_open=_refuse_to_open,
    )


def _refuse_to_open(url: str, *_: Any) -> NoReturn:
    """A video that refers to other files gets none."""
    raise NotUsable("The video refers to other files. Send it in one piece.")


def _video_stream(container: InputContainer) -> VideoStream:
    # A song's cover is a video stream to FFmpeg.
    streams = [stream for stream in container.streams.video if not stream.disposition & stream.disposition.attached_pic]
    if not streams:
        raise NotUsable("There is no video in this file.")
    stream = streams[0]
    context = stream.codec_context
    limit = settings.VIDEO_MAX_PIXELS
    if context.width * context.height > limit:
        raise NotUsable(f"The video is too large: at most {limit / 1_000_000:g} million pixels.")
    # What the stream says later than its header is held to the limit by the decoder itself.
    context.options = {"max_pixels": str(limit)}
    context.thread_count = 1
    return stream


def _first_frames(container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    """Frames that may become the poster; the last resort is the last one before the first second is over."""
    start = None
    last: VideoFrame | None = None
    for frame in container.decode(stream):
        now = frame.time or 0.0
        start = now if start is None else start
        if now - start < POSTER_FROM_SECONDS:
            last = frame
            continue
        last = None
        yield frame
        if now - start >= POSTER_UNTIL_SECONDS:
            return
    if last is not None:
        yield last


def _brightness(frame: VideoFrame) -> float:
    return float(ImageStat.Stat(_picture(frame, 32, 32).convert("L")).mean[0])


def _picture(frame: VideoFrame, width: int, height: int) -> Image.Image:
    scaled: Any = frame.reformat(width=width, height=height, format="rgb24")
    picture: Image.Image = scaled.to_image()
    return picture


def _upright(frame: VideoFrame, stream: VideoStream) -> Image.Image:
    """The frame as people see it, scaled by FFmpeg before it becomes a picture: 8K never is one in memory."""
    width, height = _stretched_size(frame, stream)
    scale = min(1.0, POSTER_PIXELS / max(width, height))
    small = _picture(frame, max(1, round(width * scale)), max(1, round(height * scale)))
    # The display matrix turns counter-clockwise, as Pillow does.
    return small.rotate(frame.rotation, expand=True) if frame.rotation % 360 else small


def _stretched_size(frame: VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """Width and height after pixels that are not square have been made so."""
    ratio = stream.sample_aspect_ratio
    if not ratio or not 0.1 < ratio < 10:
        return frame.width, frame.height
    return max(1, round(frame.width * ratio)), frame.height


def _displayed_size(frame: VideoFrame, stream: VideoStream) -> tuple[int, int]:
    width, height = _stretched_size(frame, stream)
    return (height, width) if frame.rotation % 180 else (width, height)


def _measured_seconds(container: InputContainer, report: Report) -> float:
    """Walks over all packets without decoding them: some containers do not know their length, and a cut one lies."""
    declared = container.duration / av.time_base if container.duration else None
    size = container.size or 1
    start, end = None, 0.0
    for packet in container.demux():
        if packet.is_corrupt:
            raise NotUsable(_DAMAGED)
        if packet.stream.type not in ("video", "audio") or packet.time_base is None or packet.pts is None:
            continue
        begins = float(packet.pts * packet.time_base)
        start = begins if start is None else min(start, begins)
        end = max(end, begins + float((packet.duration or 0) * packet.time_base))
        if packet.pos:
            report(10 + 85 * min(1.0, packet.pos / size), 100, "Reading the video to its end")
    reached = end - min(start or 0.0, end)
    if declared is None:
        return reached
    if reached < declared * (1 - MISSING_SHARE) - MISSING_SECONDS:
        raise NotUsable(_DAMAGED)
    return declared
