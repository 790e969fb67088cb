"""Pictures and videos."""

import warnings

from django.apps import AppConfig
from django.conf import settings
from PIL import Image


class MediaJobsConfig(AppConfig):
    """Pictures and videos that people upload."""

    name = "media_jobs"
    verbose_name = "Media"

    def ready(self) -> None:
        """Pillow only warns of a decompression bomb, from 89 million pixels on: here it refuses, and earlier."""
        Image.MAX_IMAGE_PIXELS = settings.PICTURE_MAX_PIXELS
        warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
