"""Pictures and videos, made on the spot."""

import io
import struct
import zlib
from collections.abc import Callable
from tempfile import NamedTemporaryFile
from typing import Any

import av
from PIL import Image, ImageCms, ImageDraw

RED, GREEN, BLUE, WHITE = (220, 30, 30), (30, 180, 60), (40, 60, 220), (250, 250, 250)


def corners(width: int = 800, height: int = 800) -> Image.Image:
    """Red above left, green above right, blue below left, white below right: every turn can be told."""
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    half_width, half_height = width // 2, height // 2
    for colour, left, top in (
        (RED, 0, 0),
        (GREEN, half_width, 0),
        (BLUE, 0, half_height),
        (WHITE, half_width, half_height),
    ):
        draw.rectangle((left, top, left + half_width, top + half_height), fill=colour)
    return image


def saved(image: Image.Image, file_format: str = "JPEG", **options: Any) -> bytes:
    output = io.BytesIO()
    image.save(output, file_format, **options)
    return output.getvalue()


def with_exif(orientation: int) -> bytes:
    """EXIF with this orientation, a camera, and a place."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Secret Camera"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 0.0)
    return exif.tobytes()


def srgb_profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def bomb(side: int = 30_000) -> bytes:
    """A PNG of a few hundred bytes that says it has 900 million pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 999)) + chunk(b"IEND", b"")
    )


def animation() -> bytes:
    """A GIF whose first frame is red and whose second is blue."""
    frames = [Image.new("RGB", (300, 200), colour) for colour in (RED, BLUE)]
    return saved(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)


def video(
    *,
    container: str = "mp4",
    codec: str = "libx264",
    size: tuple[int, int] = (320, 180),
    seconds: float = 3,
    black_seconds: float = 0,
    rotation: int = 0,
    picture: Callable[[int], Image.Image] | None = None,
    **options: str,
) -> bytes:
    """A video of ten frames a second: black first, as many fade in, then four coloured corners."""
    frame_type: Any = av.VideoFrame
    with NamedTemporaryFile() as output, av.open(output.name, "w", format=container, options=options) as file:
        stream: Any = file.add_stream(codec, rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        if rotation:
            stream.set_display_rotation(rotation)
        shown = corners(*size)
        for number in range(round(seconds * 10)):
            image = Image.new("RGB", size) if number < black_seconds * 10 else picture(number) if picture else shown
            file.mux(stream.encode(frame_type.from_image(image)))
        file.mux(stream.encode(None))
        file.close()
        return output.read()


def sound() -> bytes:
    """A second of silence in a container of videos."""
    output = io.BytesIO()
    with av.open(output, "w", format="mp4") as file:
        stream: Any = file.add_stream("aac", rate=44100)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate = 44100
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return output.getvalue()
