"""The way to WeasyPrint, which needs libraries of the system; without them only reports fail, and say why."""

from collections.abc import Callable

from jobs.errors import Permanent

# Debian's and Ubuntu's names; https://doc.courtbouillon.org/weasyprint/stable/first_steps.html has others.
APT_PACKAGES = "libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0 fonts-dejavu-core"


class PdfUnavailable(Permanent):
    """This machine cannot make PDFs: trying again would change nothing."""

    def __init__(self, reason: object) -> None:
        super().__init__(
            "Reports cannot be made on this machine, because libraries are missing that PDFs need."
            f" Install them: apt-get install {APT_PACKAGES}. ({str(reason).strip().splitlines()[0][:200]})"
        )


def pdf_of(html: str, *, on_page: Callable[[int], None], on_laid_out: Callable[[int], None]) -> tuple[bytes, int]:
    """The PDF of a document and the number of its pages; see `reports.typesetting.typeset`. Raises PdfUnavailable."""
    try:
        # Here, not above: the import loads Pango, and a machine without it must run everything else.
        from reports.typesetting import typeset
    except (OSError, ImportError) as error:
        raise PdfUnavailable(error) from error
    return typeset(html, on_page=on_page, on_laid_out=on_laid_out)
