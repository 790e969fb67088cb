"""Pictures by their content, with files made on the spot."""

import io
import tracemalloc
from importlib import import_module

import pytest
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from pytest_django.fixtures import Settings

from media_jobs.errors import NotUsable
from media_jobs.pictures import SIZES_PIXELS, Decoded, read_header
from tests.media_jobs.samples import (
    BLUE,
    GREEN,
    RED,
    WHITE,
    animation,
    bomb,
    corners,
    saved,
    srgb_profile,
    with_exif,
)

# What a viewer that ignores orientation would show, for each of the eight: the turn that undoes it brings the corners
# back to where they belong. Made independently of the code: by turning the picture the other way before it is saved.
UNDONE_BY = {
    1: (),
    2: (Image.Transpose.FLIP_LEFT_RIGHT,),
    3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,),
    5: (Image.Transpose.TRANSPOSE,),
    6: (Image.Transpose.ROTATE_90,),
    7: (Image.Transpose.TRANSVERSE,),
    8: (Image.Transpose.ROTATE_270,),
}


def squares(content: bytes) -> dict[int, Image.Image]:
    made: dict[int, Image.Image] = {}
    for square in Decoded(io.BytesIO(content)).squares():
        image = Image.open(io.BytesIO(square.content))
        image.load()
        made[square.size_pixels] = image
    return made


def is_near(seen: object, wanted: tuple[int, ...], *, by: int = 14) -> bool:
    assert isinstance(seen, tuple)
    return all(abs(one - other) <= by for one, other in zip(seen[:3], wanted, strict=True))


def assert_upright(image: Image.Image) -> None:
    low, high = image.width // 4, image.width * 3 // 4
    places = {(low, low): RED, (high, low): GREEN, (low, high): BLUE, (high, high): WHITE}
    seen = {place: image.getpixel(place) for place in places}
    assert {place: seen[place] for place, colour in places.items() if not is_near(seen[place], colour)} == {}


def test_a_picture_becomes_three_webp_squares() -> None:
    made = squares(saved(corners()))
    assert {size: (image.format, image.size) for size, image in made.items()} == {
        size: ("WEBP", (size, size)) for size in (64, 256, 512)
    }
    for image in made.values():
        assert_upright(image)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_each_of_the_eight_orientations_comes_out_upright(orientation: int, file_format: str) -> None:
    stored = corners(1600, 1200)
    for turn in UNDONE_BY[orientation]:
        stored = stored.transpose(turn)
    content = saved(stored, file_format, exif=with_exif(orientation))
    decoded = Decoded(io.BytesIO(content))
    assert (decoded.width_pixels, decoded.height_pixels) == (1600, 1200)
    for square in decoded.squares():
        assert_upright(Image.open(io.BytesIO(square.content)))


def test_no_metadata_is_left() -> None:
    content = saved(corners(), exif=with_exif(1), icc_profile=srgb_profile(), comment=b"made by Ann")
    for square in Decoded(io.BytesIO(content)).squares():
        image = Image.open(io.BytesIO(square.content))
        assert not image.getexif()
        assert {"exif", "icc_profile", "xmp", "comment"} & image.info.keys() == set()
        assert b"Secret Camera" not in square.content
        assert b"Ann" not in square.content


def test_a_large_jpeg_is_decoded_once_and_never_at_its_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[tuple[int, int]] = []
    prepare = JpegImageFile.load_prepare

    def noted(image: JpegImageFile) -> None:
        decoded.append(image.size)
        prepare(image)

    content = saved(corners(4000, 3000))
    monkeypatch.setattr(JpegImageFile, "load_prepare", noted)
    made = Decoded(io.BytesIO(content))
    assert len(list(made.squares())) == 3
    assert decoded == [(2000, 1500)]
    assert (made.width_pixels, made.height_pixels) == (4000, 3000)


@pytest.mark.parametrize("size", [(4000, 700), (700, 4000), (37, 23), (1, 1), (1, 3000)])
def test_any_shape_gives_squares_of_its_middle(size: tuple[int, int]) -> None:
    assert sorted(squares(saved(Image.new("RGB", size, GREEN), "PNG"))) == sorted(SIZES_PIXELS)
    wide = Image.new("RGB", (900, 300), RED)
    wide.paste(BLUE, (300, 0, 600, 300))
    assert is_near(squares(saved(wide, "PNG"))[64].getpixel((3, 3)), BLUE)


def test_cmyk_keeps_its_colours() -> None:
    for square in squares(saved(corners().convert("CMYK"))).values():
        assert_upright(square)


def test_a_palette_is_smoothed_and_keeps_what_shines_through() -> None:
    palette = corners().quantize(8)
    assert_upright(squares(saved(palette, "PNG"))[256])
    white = palette.getpixel((799, 799))
    made = squares(saved(palette, "PNG", transparency=white))[512]
    assert made.mode == "RGBA"
    pixel = made.getpixel((500, 500))
    assert isinstance(pixel, tuple)
    assert pixel[3] == 0


def test_alpha_is_kept_and_nothing_dark_bleeds_into_edges() -> None:
    image = Image.new("RGBA", (800, 800), (0, 0, 0, 0))
    image.paste((*WHITE, 255), (200, 200, 600, 600))
    made = squares(saved(image, "PNG"))[64]
    assert made.mode == "RGBA"
    middle, corner = made.getpixel((32, 32)), made.getpixel((1, 1))
    assert isinstance(middle, tuple)
    assert isinstance(corner, tuple)
    assert (is_near(middle, WHITE), middle[3], corner[3]) == (True, 255, 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16"])
def test_grey_pictures_keep_their_greys(mode: str) -> None:
    grey = Image.linear_gradient("L").resize((600, 600))
    if mode == "I;16":
        wide = Image.frombytes("I;16", (600, 600), b"".join(bytes((0, value)) for value in grey.tobytes()))
        content = saved(wide, "PNG")
    else:
        content = saved(grey.convert(mode), "PNG")
    made = squares(content)[512].convert("L")
    assert made.getpixel((256, 20)) < 60
    assert 85 < (made.resize((1, 1), Image.Resampling.BOX).getpixel((0, 0)) or 0) < 170
    assert made.getpixel((256, 490)) > 195


def test_a_profile_is_applied_before_it_is_dropped() -> None:
    # In this profile the first number is how blue something is, and the third how red.
    exchanged = srgb_profile().replace(b"rXYZ", b"....").replace(b"bXYZ", b"rXYZ").replace(b"....", b"bXYZ")
    red, green, blue = corners().split()
    content = saved(Image.merge("RGB", (blue, green, red)), icc_profile=exchanged)
    assert_upright(squares(content)[256])


def test_a_broken_profile_is_no_reason_to_refuse_a_picture() -> None:
    assert_upright(squares(saved(corners(), icc_profile=b"no profile at all"))[256])


def test_the_first_frame_of_an_animation_is_taken() -> None:
    assert is_near(squares(animation())[64].convert("RGB").getpixel((32, 32)), RED)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "AVIF"])
def test_what_the_content_is_counts_not_what_it_is_called(file_format: str) -> None:
    content = saved(corners(), file_format)
    header = read_header(io.BytesIO(content))
    assert (header.format, header.width_pixels, header.height_pixels) == (file_format, 800, 800)
    assert len(squares(content)) == 3


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"><script>alert(1)</script></svg>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    "content",
    [SVG, EPS, b"hello", b"\xff\xd8\xff", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\0" * 4096, saved(corners(), "BMP")],
    ids=["svg", "eps", "text", "jpeg start", "gif start", "png start", "zeroes", "bmp"],
)
def test_what_is_no_picture_is_refused_by_its_header(content: bytes) -> None:
    with pytest.raises(NotUsable, match="picture"):
        read_header(io.BytesIO(content))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF", "AVIF"])
def test_a_truncated_picture_is_refused(file_format: str) -> None:
    content = saved(Image.effect_noise((800, 800), 80).convert("RGB"), file_format)
    with pytest.raises(NotUsable, match=r"damaged or not complete|can be read"):
        list(Decoded(io.BytesIO(content[: len(content) // 2])).squares())


def test_a_jpeg_that_lacks_its_end_is_refused_although_verify_would_pass_it() -> None:
    content = saved(Image.effect_noise((900, 900), 80).convert("RGB"))[:-20_000]
    Image.open(io.BytesIO(content)).verify()
    with pytest.raises(NotUsable, match="not complete"):
        Decoded(io.BytesIO(content))


def test_a_decompression_bomb_is_refused_by_its_header_without_memory() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(NotUsable, match="too many pixels: at most 50 million"):
            read_header(io.BytesIO(bomb()))
        with pytest.raises(NotUsable, match="too many pixels"):
            Decoded(io.BytesIO(bomb()))
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_the_limit_of_pixels_is_a_setting(settings: Settings) -> None:
    content = saved(Image.new("L", (1200, 1000)), "PNG")
    settings.PICTURE_MAX_PIXELS = 1_200_000
    assert read_header(io.BytesIO(content)).width_pixels == 1200
    settings.PICTURE_MAX_PIXELS = 1_199_999
    with pytest.raises(NotUsable, match=r"at most 1\.2 million"):
        read_header(io.BytesIO(content))


@pytest.mark.filterwarnings("ignore:.*(EXIF|Tag).*:UserWarning")
def test_broken_exif_spoils_nothing() -> None:
    for exif in (b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", with_exif(1)[:20], with_exif(99)):
        assert_upright(squares(saved(corners(), exif=exif))[256])


def test_a_process_that_made_a_report_still_refuses_truncated_pictures() -> None:
    import_module("reports.typesetting")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
