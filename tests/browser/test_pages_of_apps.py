"""The admin pages of pictures, reports, webhooks and schedules, as they look."""

from datetime import date

import pytest
from django.core.files.base import ContentFile
from django.utils import timezone
from playwright.sync_api import Page, expect

from accounts.models import User
from jobs.ids import new_id
from jobs.models import ScheduleState, Tick
from media_jobs import posters, renditions
from media_jobs import services as media
from notifications.models import EmailLog
from reports.models import Report
from tests.jobs.cron.schedules import make_schedule
from tests.media_jobs import samples
from tests.variants import variant
from webhooks import services as webhooks
from webhooks.models import Delivery, DeliveryAttempt, IncomingEvent, Source

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def owner(transactional_db: None) -> User:
    """Somebody whose address is longer than most, and who has some of everything."""
    owner = User.objects.create(email="a.rather.long.local.part.1795604862@a.longer.example.com", name="Ann")
    picture = media.add_picture(owner_id=owner.pk, file=ContentFile(samples.saved(samples.corners())), purpose="avatar")
    renditions.make(picture_id=picture.pk, report=lambda *_: None)
    video = media.add_video(owner_id=owner.pk, file=ContentFile(samples.video(seconds=1)))
    posters.make(video_id=video.pk, report=lambda *_: None)
    ready = {"ready_at": timezone.now(), "file": "reports/x.pdf", "page_count": 1, "size_bytes": 1}
    days = {"from_date": date(2026, 3, 1), "to_date": date(2026, 3, 31)}
    Report.objects.create(owner=owner, kind="activity", job_id=new_id(), **days, **ready)
    url = f"https://hooks.example.com/services/{'0123456789abcdef' * 6}"
    webhooks.create_endpoint(owner=owner, url=url, event_types=["media.ready"])
    webhooks.publish(event_type="media.ready", user=owner, subject="picture-7", data={"id": 7})
    attempt = DeliveryAttempt.objects.create(delivery=Delivery.objects.get(), number=1, job_id=new_id())
    attempt.finish(status=500, error="The endpoint answered 500 Internal Server Error.", response_excerpt="x" * 2048)
    IncomingEvent.objects.create(
        source=Source.objects.create(name="shop", sealed_secret="-"),
        event_id="msg_" + "2KWPBgLlAfxdpx2AI54pPJ85f4W" * 2,
        type="contact.updated",
        body='{"type": "contact.updated"}',
        job_id=new_id(),
    )
    EmailLog.objects.create(
        user=owner,
        kind="report-ready",
        period=str(new_id()),
        recipient=owner.email,
        message_id=f"<{new_id()}@x.example>",
    )
    schedule = make_schedule(
        "A schedule with a name that is longer than most", kwargs='{"recipient": "' + "x" * 80 + '"}'
    )
    Tick.objects.create(schedule=schedule, scheduled_for=timezone.now(), outcome="enqueued", job_id=new_id())
    ScheduleState.objects.update(error=f"add() got an unexpected keyword argument {'recipient' * 8}")
    return owner


@pytest.mark.usefixtures("owner")
def test_thumbnails_are_large_enough_to_be_looked_at(signed_in: Page) -> None:
    for path, size in (("picture", (64, 64)), ("video", (114, 64))):
        signed_in.goto(f"/admin/media_jobs/{path}/")
        thumbnail = signed_in.locator("#result_list img")
        expect(thumbnail).to_have_js_property("complete", True)
        box = thumbnail.bounding_box()
        assert box is not None
        assert (round(box["width"]), round(box["height"])) == size
        assert thumbnail.evaluate("image => image.naturalWidth") > 0


@pytest.mark.usefixtures("owner")
def test_the_file_of_a_report_can_be_reached_without_scrolling_sideways(signed_in: Page) -> None:
    signed_in.goto("/admin/reports/report/")
    expect(signed_in.get_by_role("link", name="Download")).to_be_in_viewport(ratio=1)


PAGES = {
    "picture": "/admin/media_jobs/picture/",
    "video": "/admin/media_jobs/video/",
    "report": "/admin/reports/report/",
    "source": "/admin/webhooks/source/",
    "event": "/admin/webhooks/incomingevent/",
    "endpoint": "/admin/webhooks/endpoint/",
    "delivery": "/admin/webhooks/delivery/",
    "mail": "/admin/notifications/emaillog/",
    "schedule": "/admin/django_celery_beat/periodictask/",
}
# A page with a picture, one with long words, and one with a form.
ONE_OF_EACH = ("picture", "delivery", "schedule")


@pytest.mark.usefixtures("owner")
@pytest.mark.parametrize("thing", [thing if thing in ONE_OF_EACH else variant(thing) for thing in PAGES])
def test_list_and_page_fit_a_telephone(signed_in: Page, thing: str) -> None:
    signed_in.set_viewport_size({"width": 390, "height": 844})
    signed_in.goto(PAGES[thing])
    assert signed_in.evaluate("document.documentElement.scrollWidth") <= 390
    signed_in.locator(f"#result_list a[href^='{PAGES[thing]}']").first.click()
    expect(signed_in.locator("#content-main")).to_be_visible()
    assert signed_in.evaluate("document.documentElement.scrollWidth") <= 390
