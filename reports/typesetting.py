"""HTML to PDF by WeasyPrint. Importing this needs Pango on the machine: only `reports.pdf` imports it, when it must."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from mimetypes import guess_type
from pathlib import Path

from PIL import ImageFile
from weasyprint import HTML
from weasyprint.urls import URLFetcher, URLFetcherResponse

# WeasyPrint lets Pillow take truncated pictures, in the whole process: uploads that are cut would pass as whole.
ImageFile.LOAD_TRUNCATED_IMAGES = False

ASSETS = Path(__file__).resolve().parent / "assets"
SCHEME = "asset:"
# ISO 14289-1: tagged, with language and title, so that a screen reader can read it.
VARIANT = "pdf/ua-1"


class NotOurAsset(ValueError):
    """A document wanted to load something that is not part of this project."""


class BundledOnly(URLFetcher):
    """Fetches `asset:<name>` from `reports/assets/`; everything else, of whatever scheme, is refused.

    So no text that gets into a report can make the worker read a file or call a server. WeasyPrint logs the refusal and
    renders the document without the thing.
    """

    def fetch(self, url: str, headers: object = None) -> URLFetcherResponse:
        """The asset, or NotOurAsset."""
        name = url.removeprefix(SCHEME)
        # Compared with the names that are there, so that no path leads out of the folder.
        if not url.startswith(SCHEME) or name not in {path.name for path in ASSETS.iterdir() if path.is_file()}:
            raise NotOurAsset(f"A report may not load {url[:200]}")
        media_type = guess_type(name)[0] or "application/octet-stream"
        return URLFetcherResponse(url, (ASSETS / name).read_bytes(), {"Content-Type": media_type})


def typeset(
    html: str, *, on_page: Callable[[int], None], on_laid_out: Callable[[int], None] = lambda _: None
) -> tuple[bytes, int]:
    """The PDF and the number of its pages.

    `on_page` hears the number of each page before it is laid out, which takes two thirds of the time, and `on_laid_out`
    how many there are before they are drawn. What one of them raises ends the work.
    """
    with _told(on_page):
        document = HTML(string=html, base_url=SCHEME, url_fetcher=BundledOnly()).render()
    on_laid_out(len(document.pages))
    target = BytesIO()
    document.write_pdf(target, pdf_variant=VARIANT)
    return target.getvalue(), len(document.pages)


class _Pages(logging.Handler):
    """Hears of each page that WeasyPrint begins in this thread. It says so in its log, and nowhere else."""

    def __init__(self, on_page: Callable[[int], None]) -> None:
        super().__init__(logging.INFO)
        self._on_page = on_page
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread and "Creating layout - Page %d" in str(record.msg):
            self._on_page(int(record.args[0]))  # type: ignore[arg-type, index]  # a tuple of one number


@contextmanager
def _told(on_page: Callable[[int], None]) -> Iterator[None]:
    handler, progress = _Pages(on_page), logging.getLogger("weasyprint.progress")
    progress.addHandler(handler)
    try:
        yield
    finally:
        progress.removeHandler(handler)
