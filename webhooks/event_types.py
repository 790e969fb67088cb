"""The events that endpoints can hear of."""

# Each with what its `data` holds, for the API's description and for people.
EVENT_TYPES = {
    "user.created": "A user has signed up: id, email, name",
    "media.ready": "A picture or video is ready: id, kind",
    "report.ready": "A report is ready for download: id",
}
