"""A field of a form for arguments of jobs."""

import json
from typing import Any

from django import forms
from django.forms.fields import InvalidJSONInput
from kombu.utils import json as kombu_json

from jobs.payloads import PayloadDecoder


class PayloadField(forms.JSONField):
    """A part of a payload as indented JSON, with the values that Celery's JSON marks."""

    def __init__(self, **options: Any) -> None:
        super().__init__(decoder=PayloadDecoder, encoder=kombu_json.JSONEncoder, **options)

    def to_python(self, value: Any) -> Any:
        """Refuses also numbers that are too long, and what is nested too deep."""
        try:
            return super().to_python(value)
        except (ValueError, RecursionError) as error:
            raise forms.ValidationError(f"Not a value that can be read: {error}", code="invalid") from error

    def bound_data(self, data: Any, initial: Any) -> Any:
        """What was typed, where it cannot be read."""
        try:
            return super().bound_data(data, initial)
        except (ValueError, RecursionError):
            return InvalidJSONInput(data)

    def prepare_value(self, value: Any) -> str:
        """What stands in the field; what did not parse stays as it was typed, and nothing is nothing."""
        if isinstance(value, InvalidJSONInput):
            return value
        if value is None:
            return ""
        return json.dumps(value, indent=2, ensure_ascii=False, cls=self.encoder)
