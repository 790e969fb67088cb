"""Pictures by their content: what a header tells, and square renditions in WebP.

Nothing here knows of the database, the ledger or the storage.
"""

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from django.conf import settings
from PIL import Image, ImageCms, UnidentifiedImageError

from media_jobs.errors import NotUsable

# The decoders that are let near a stranger's file. TIFF and the many odd ones stay out; so does whatever runs a program
# (EPS) and whatever is no raster (SVG).
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "AVIF")
NAMES = "JPEG, PNG, WebP, GIF or AVIF"
SIZES_PIXELS = (64, 256, 512)
# Twice the largest rendition: a JPEG decoder that may halve while it decodes is five times as fast, and the picture is
# still made smaller afterwards, never larger.
DRAFT_PIXELS = 2 * max(SIZES_PIXELS)
QUALITY = 82
# What broken files make Pillow raise, beside its own errors: its parsers are plain Python.
_BROKEN = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError, struct.error)


@dataclass(frozen=True, kw_only=True)
class Header:
    """What the header of a picture says: not yet that the rest is there."""

    format: str
    width_pixels: int
    height_pixels: int


@dataclass(frozen=True, kw_only=True)
class Square:
    """One rendition: a WebP file without metadata."""

    size_pixels: int
    content: bytes


def read_header(file: IO[bytes]) -> Header:
    """The header of a picture in one of the formats taken; decodes nothing. Raises NotUsable with a sentence."""
    file.seek(0)
    with _opened(file) as image:
        header = Header(format=image.format or "", width_pixels=image.width, height_pixels=image.height)
    file.seek(0)
    return header


class Decoded:
    """A picture that was decoded once, cut to a square of at most the largest rendition, and turned upright."""

    def __init__(self, file: IO[bytes]) -> None:
        """Raises NotUsable for a file that is no picture, not whole, or too large to decode."""
        with _opened(file) as image:
            width, height = image.size
            image.draft("RGB", (DRAFT_PIXELS, DRAFT_PIXELS))
            try:
                # Only this tells whether the file is whole: `verify()` lets a truncated JPEG pass.
                image.load()
            except _BROKEN as error:
                raise NotUsable("The picture is damaged or not complete.") from error
            square = _fitted(_in_channels(image), max(SIZES_PIXELS))
            turned = _orientation(image)
        # From here on everything costs the same, however large the picture was.
        square = _in_srgb(square)
        # Turning the square is the same as cutting the turned picture: its middle stays its middle.
        self._square = square.transpose(_TURNS[turned]) if turned in _TURNS else square
        is_on_its_side = turned >= 5
        self.width_pixels, self.height_pixels = (height, width) if is_on_its_side else (width, height)

    def squares(self) -> Iterator[Square]:
        """The renditions, the largest first: each is made from the one before."""
        square = self._square
        for size in sorted(SIZES_PIXELS, reverse=True):
            square = _fitted(square, size)
            yield Square(size_pixels=size, content=as_webp(square))


def as_webp(image: Image.Image) -> bytes:
    """The picture as a WebP file that holds nothing but pixels: no camera, no place, no thumbnail, no profile."""
    output = io.BytesIO()
    image.save(output, "WEBP", quality=QUALITY, method=4, exif=b"", icc_profile=b"", xmp=b"")
    return output.getvalue()


# Exif 2.32, tag 0x0112: what was done to the picture, and so what undoes it.
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _opened(file: IO[bytes]) -> Image.Image:
    limit = settings.PICTURE_MAX_PIXELS
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise NotUsable(f"This is not a picture that can be read. Send a {NAMES} file.") from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise NotUsable(_too_many_pixels(limit)) from error
    except _BROKEN as error:
        raise NotUsable("The picture is damaged or not complete.") from error
    # Asked again here: warnings are switched per process, and this must not hang on who switched them last.
    if image.width * image.height > limit:
        image.close()
        raise NotUsable(_too_many_pixels(limit))
    if image.width < 1 or image.height < 1:
        image.close()
        raise NotUsable("The picture is empty.")
    return image


def _too_many_pixels(limit: int) -> str:
    return f"The picture has too many pixels: at most {limit / 1_000_000:g} million."


def _orientation(image: Image.Image) -> int:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except _BROKEN:
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def _fitted(image: Image.Image, size: int) -> Image.Image:
    """The middle of the picture as a square."""
    if image.size == (size, size):
        return image
    # The reducing gap first halves by whole steps: as good to the eye, and much faster for large pictures.
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return image.resize(
        (size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side), reducing_gap=3.0
    )


def _in_channels(image: Image.Image) -> Image.Image:
    """The picture as something that may be made smaller: numbers of a palette cannot be averaged."""
    if image.mode.startswith("I"):
        # 16 bits of grey (PNG): a plain conversion would cut everything above 255 to white.
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if "transparency" in image.info or image.mode in ("PA", "LA"):
        return image.convert("RGBA")
    return image.convert("RGB") if image.mode in ("1", "P") else image


def _in_srgb(image: Image.Image) -> Image.Image:
    """RGB, or RGBA where something shines through, in the colours that browsers take numbers without a profile for."""
    mode = "RGBA" if image.mode in ("RGBA", "RGBa") else "RGB"
    profile = image.info.get("icc_profile")
    if not profile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return image.convert(mode)
    alpha = image.getchannel("A") if mode == "RGBA" else None
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        colours = image.convert("RGB") if alpha else image
        converted = ImageCms.profileToProfile(colours, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (ImageCms.PyCMSError, *_BROKEN):
        # A broken profile is no reason to refuse the picture: its numbers are taken as they are.
        return image.convert(mode)
    if converted is None:
        return image.convert(mode)
    if alpha:
        converted.putalpha(alpha)
    return converted
