"""Pictures and videos in the admin, with thumbnails that only staff who may see them get."""

from collections.abc import Mapping
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.db.models.fields.files import FieldFile
from django.http import Http404, HttpRequest
from django.http.response import HttpResponseBase
from django.template.defaultfilters import filesizeformat
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.decorators import display
from unfold.paginator import InfinitePaginator

from jobs import rendering
from jobs.admin.read_only import ReadOnlyAdmin
from media_jobs.files import whole_file
from media_jobs.models import Picture, Upload, Video
from media_jobs.pictures import SIZES_PIXELS
from media_jobs.selectors import Progress, progress_of, with_job

_COLOURS: Mapping[str, str] = {Progress.READY: "success", Progress.FAILED: "danger", Progress.PROCESSING: "info"}
_THUMBNAIL_PIXELS = min(SIZES_PIXELS)


class UploadAdmin(ReadOnlyAdmin):
    """What the pages of pictures and videos have in common. Nothing is edited: it is what somebody uploaded."""

    list_per_page = 50
    list_select_related = ("owner",)
    ordering = ("-created_at",)
    search_fields = ("owner__email", "error")
    show_full_result_count = False
    # Counting the rows that match costs more than showing a page of them.
    paginator = InfinitePaginator
    show_facets = admin.ShowFacets.NEVER

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """Uploads with what their jobs say."""
        return with_job(super().get_queryset(request))

    def preview_of(self, upload: Any, name: str) -> FieldFile | None:
        """The file of an upload by the name that stands in the address of its preview."""
        raise NotImplementedError

    def get_urls(self) -> list[URLPattern]:
        """The list and the pages, and the files that they show."""
        view = self.admin_site.admin_view(self.preview)
        return [path("<int:upload_id>/preview/<str:name>", view, name=self._preview_name()), *super().get_urls()]

    def preview(self, request: HttpRequest, upload_id: int, name: str) -> HttpResponseBase:
        """One file that was made of an upload."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        upload = self.model._default_manager.filter(pk=upload_id).first()
        file = self.preview_of(upload, name) if upload else None
        if not file:
            raise Http404
        return whole_file(file)

    def image(self, upload: Upload, name: str, *, width: int, height: int) -> SafeString:
        """A preview as a picture in a page; one that is no higher than a thumbnail keeps its size in any column."""
        url = reverse(f"admin:{self._preview_name()}", args=[upload.pk, name])
        return format_html(
            '<img src="{}" width="{}" height="{}" alt="{}" class="{}" loading="lazy">',
            url,
            width,
            height,
            f"{upload} ({name})",
            "jobs-thumbnail" if height <= _THUMBNAIL_PIXELS else "",
        )

    def _preview_name(self) -> str:
        return f"{self.opts.app_label}_{self.opts.model_name}_preview"

    @display(description="state")
    def state(self, upload: Any) -> SafeString:
        """What has become of it."""
        return rendering.badge(progress_of(upload)[0], _COLOURS)

    @display(description="error")
    def error_text(self, upload: Any) -> SafeString | str:
        """Why nothing could be made of it."""
        error = progress_of(upload)[1]
        return format_html('<strong class="jobs-error">{}</strong>', error) if error else "–"

    @display(description="pixels")
    def pixels(self, upload: Upload) -> SafeString | str:
        """Width and height, as people see it."""
        if upload.width_pixels is None:
            return "–"
        return format_html('<span class="jobs-nowrap">{} × {}</span>', upload.width_pixels, upload.height_pixels)

    @display(description="original", ordering="byte_count")
    def original_text(self, upload: Upload) -> str:
        """Format and size."""
        return f"{upload.format}, {filesizeformat(upload.byte_count)}"

    @display(description="uploaded", ordering="created_at")
    def created(self, upload: Upload) -> SafeString | str:
        """When it came."""
        return rendering.recent(upload.created_at)

    @display(description="ready", ordering="ready_at")
    def ready(self, upload: Upload) -> SafeString | str:
        """When everything was made of it."""
        return rendering.recent(upload.ready_at)

    @display(description="job")
    def job(self, upload: Upload) -> SafeString | str:
        """The job that works on it."""
        if upload.job_id is None:
            return "–"
        url = reverse("admin:jobs_job_change", args=[upload.job_id])
        return format_html('<a class="jobs-link jobs-nowrap" href="{}">…{}</a>', url, str(upload.job_id)[-12:])


@admin.register(Picture)
class PictureAdmin(UploadAdmin):
    """Pictures, with their smallest rendition in the list and all of them on their page."""

    list_display = ("thumbnail", "purpose", "owner", "state", "pixels", "original_text", "created", "job")
    list_display_links = ("thumbnail", "purpose")
    list_filter = ("purpose", "created_at")
    fields = readonly_fields = (
        "all_renditions",
        "purpose",
        "owner",
        "state",
        "error_text",
        "pixels",
        "original_text",
        "created",
        "ready",
        "job",
    )

    def preview_of(self, upload: Picture, name: str) -> FieldFile | None:
        """A rendition by its size."""
        found = upload.renditions.filter(size_pixels=int(name)).first() if name in map(str, SIZES_PIXELS) else None
        return found.file if found else None

    @display(description="")
    def thumbnail(self, picture: Picture) -> SafeString | str:
        """Its smallest rendition."""
        return self._square(picture, _THUMBNAIL_PIXELS) if picture.ready_at else "–"

    @display(description="renditions")
    def all_renditions(self, picture: Picture) -> SafeString | str:
        """All of its renditions."""
        if not picture.ready_at:
            return "–"
        squares = ((self._square(picture, size),) for size in SIZES_PIXELS)
        return format_html(
            '<div class="flex flex-wrap items-center gap-3">{}</div>', format_html_join("", "{}", squares)
        )

    def _square(self, picture: Picture, size: int) -> SafeString:
        return self.image(picture, str(size), width=size, height=size)


@admin.register(Video)
class VideoAdmin(UploadAdmin):
    """Videos with their posters."""

    list_display = ("thumbnail", "owner", "state", "duration", "pixels", "original_text", "created", "job")
    list_display_links = ("thumbnail", "owner")
    list_filter = ("created_at",)
    fields = readonly_fields = (
        "large_poster",
        "owner",
        "state",
        "error_text",
        "duration",
        "pixels",
        "original_text",
        "created",
        "ready",
        "job",
    )

    def preview_of(self, upload: Video, name: str) -> FieldFile | None:
        """The poster."""
        return upload.poster if name == "poster" else None

    @display(description="")
    def thumbnail(self, video: Video) -> SafeString | str:
        """The poster, small."""
        return self._poster(video, height=_THUMBNAIL_PIXELS) if video.ready_at else "–"

    @display(description="poster")
    def large_poster(self, video: Video) -> SafeString | str:
        """The poster, large enough to be looked at."""
        return self._poster(video, height=360) if video.ready_at else "–"

    @display(description="length", ordering="duration_seconds")
    def duration(self, video: Video) -> str:
        """How long it is."""
        return rendering.duration(video.duration_seconds)

    def _poster(self, video: Video, *, height: int) -> SafeString:
        width = round(height * (video.width_pixels or 1) / (video.height_pixels or 1))
        return self.image(video, "poster", width=width, height=height)
