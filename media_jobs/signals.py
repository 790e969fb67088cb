"""Domain events of media. Each is sent inside the transaction that causes it: what a receiver writes stands or falls
with it, and a receiver that raises rolls it back. Receivers are connected in `config.subscriptions`."""

from django.dispatch import Signal

# A picture has its renditions, or a video its poster. Sent once for each. Arguments: media, the Picture or Video
# (`media.kind` says which, `media.owner_id` whose).
media_ready = Signal()
