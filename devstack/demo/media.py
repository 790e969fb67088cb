"""The demo of pictures and videos: what comes back of them, and what is refused."""

import io
import tempfile
from typing import Any

import av
import httpx
from PIL import Image, ImageDraw

from devstack.demo.report import Report
from devstack.demo.site import Site
from devstack.demo.watching import watched

# As a telephone stores a picture that was taken upright: on its side, with a note to turn it.
SIZE_PIXELS = (4000, 3000)
TURN_RIGHT = 6
ORIENTATION = 0x0112
SKY, EARTH = (60, 130, 220), (90, 60, 30)


def show(site: Site, report: Report, *, address: str) -> None:
    """Uploads a picture and a video, watches their jobs, and tries what must be refused."""
    token = site.token(address)
    with httpx.Client(base_url=site.urls["web"], timeout=60, headers={"Authorization": f"Bearer {token}"}) as client:
        _picture(client, report)
        _video(client, report)
        _refusals(client, report)


def _picture(client: httpx.Client, report: Report) -> None:
    content = _photograph()
    job, picture = _uploaded(client, report, "/api/images", content, "photograph.jpg")
    report.check("the picture's job is completed", job["state"] == "completed", job["error"] or job["state"])
    squares = []
    for rendition in picture["renditions"]:
        answer = client.get(rendition["url"])
        squares.append(Image.open(io.BytesIO(answer.content)))
    seen = ", ".join(f"{square.format} {square.width} × {square.height}" for square in squares)
    report.step(f"the picture has become {seen}")
    sizes = [square.size for square in squares]
    report.check("it has three square renditions", sizes == [(64, 64), (256, 256), (512, 512)], seen)
    upright = bool(squares) and _is_upright(squares[-1])
    report.check("they are upright, without metadata", upright and not squares[-1].getexif(), "sky above")
    stranger = httpx.get(client.base_url.join(picture["renditions"][0]["url"])) if squares else None
    status = stranger.status_code if stranger else None
    report.check("a stranger does not get them", status == httpx.codes.UNAUTHORIZED, status)


def _video(client: httpx.Client, report: Report) -> None:
    job, video = _uploaded(client, report, "/api/videos", _film(), "film.mp4")
    report.check("the video's job is completed", job["state"] == "completed", job["error"] or job["state"])
    seen = f"{video['duration_seconds']} s, {video['width_pixels']} × {video['height_pixels']}"
    report.step(f"the video is {seen}; its poster is at {video['poster_url']}")
    report.check("its length and size were measured", seen == "4.0 s, 640 × 360", seen)
    poster = Image.open(io.BytesIO(client.get(video["poster_url"]).content)) if video["poster_url"] else None
    report.check("its poster shows something", poster is not None and _is_upright(poster), poster and poster.size)


def _refusals(client: httpx.Client, report: Report) -> None:
    svg = b'<svg xmlns="http://www.w3.org/2000/svg"/>'
    for claim, path, content in (
        ("an SVG is refused as a picture", "/api/images", svg),
        ("a text is refused as a video", "/api/videos", b"no video"),
    ):
        answer = client.post(path, files={"file": ("file", content)})
        words = answer.json()["error"]["fields"].get("file", "")
        report.check(claim, answer.status_code == httpx.codes.UNPROCESSABLE_ENTITY, words)
    job, picture = _uploaded(client, report, "/api/images", _photograph()[:-50_000], "cut.jpg")
    report.check("a picture that lacks its end fails for good", job["state"] == "failed", job["error"])
    report.check("the owner is told why", picture["error"] == job["error"] != "", picture["state"])


def _uploaded(
    client: httpx.Client, report: Report, path: str, content: bytes, name: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The ended job and the upload, as their owner sees them; each step of the job is shown."""
    answer = client.post(path, files={"file": (name, content)})
    accepted = answer.json()
    size = f"{len(content) / 1024:,.0f} KiB"
    report.step(f"POST {path} with {name}, {size}: {answer.status_code} after {answer.elapsed.total_seconds():.2f} s")
    answer.raise_for_status()
    job = watched(report, lambda: client.get(f"/api/jobs/{accepted['job']}").json(), what=name)
    upload: dict[str, Any] = client.get(f"{path}/{accepted['id']}").json()
    return job, upload


def _scene(width: int, height: int) -> Image.Image:
    scene = Image.new("RGB", (width, height), SKY)
    ImageDraw.Draw(scene).rectangle((0, height // 2, width, height), fill=EARTH)
    return scene


def _is_upright(image: Image.Image) -> bool:
    colours = image.convert("RGB").resize((8, 8))
    above, below = colours.getpixel((4, 1)), colours.getpixel((4, 6))
    return isinstance(above, tuple) and isinstance(below, tuple) and above[2] > 150 > 80 > below[2]


def _photograph() -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = TURN_RIGHT
    output = io.BytesIO()
    _scene(*reversed(SIZE_PIXELS)).transpose(Image.Transpose.ROTATE_90).save(output, "JPEG", quality=95, exif=exif)
    return output.getvalue()


def _film() -> bytes:
    """Four seconds, the first of them black."""
    frames: Any = av.VideoFrame
    size = 640, 360
    with tempfile.NamedTemporaryFile() as output, av.open(output.name, "w", format="mp4") as file:
        stream: Any = file.add_stream("libx264", rate=10)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(40):
            file.mux(stream.encode(frames.from_image(Image.new("RGB", size) if number < 10 else _scene(*size))))
        file.mux(stream.encode(None))
        file.close()
        return output.read()
