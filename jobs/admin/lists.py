"""The base of admin pages whose lists survive any address."""

import logging

from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ChangeList
from django.core.exceptions import SuspiciousOperation
from django.http import HttpRequest
from unfold.admin import ModelAdmin

from jobs import settle
from jobs.patience import may_pass

logger = logging.getLogger(__name__)


class ListAdmin(ModelAdmin):
    """Rows whose list answers filters that mean nothing with the whole list, as Django does where it notices.

    It notices what is wrong by itself, and not what is wrong for the database: a year 99999, the page 10**30. That
    shows when the list is read, which Django leaves to the template.
    """

    def get_changelist_instance(self, request: HttpRequest) -> ChangeList:
        """The list, read."""
        try:
            # PostgreSQL's refusal is not to end the transaction of the request, if it has one.
            with settle.atomic():
                found: ChangeList = super().get_changelist_instance(request)
                len(found.result_list)
        except (IncorrectLookupParameters, SuspiciousOperation):
            raise
        except Exception as error:  # nothing says beforehand which filters mean something
            if may_pass(error) or not request.GET:
                raise
            logger.warning("The list of %s cannot be filtered so. %s: %s", self.opts, type(error).__name__, error)
            raise IncorrectLookupParameters(error) from error
        return found
