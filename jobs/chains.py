"""The rest of a chain, which goes from row to row inside of PostgreSQL.

A step of a chain of a thousand has hundreds of signatures behind it, of which its end needs the next one. So a claim
brings that one, and the row of the next step takes the others out of the row of the step before it. No process reads
or writes them, and what each step costs hardly grows with the length of its chain.
"""

from typing import Any
from uuid import UUID

from django.db.models.expressions import RawSQL

from jobs.models import Job
from jobs.payloads import as_json

# Says, among the follow-ups of a claim, that the row has more of the chain than the claim.
_CUT = "cut"

# The follow-ups of a claimed job, as text. A chain is not cut if its next step or its last one is a canvas, or if it
# ends in a chord: the place of the next step in a flow is found in the last one.
# Part of the statements that claim: they lock and find the row.
CLAIMED_FOLLOW_UPS = f"""CASE WHEN jsonb_path_exists(job.follow_ups, '$ ? (@.chain.size() > 1
              && @.chain[last].subtask_type == null && @.chain[0].subtask_type == null
              && !exists(@.chain[0].options.chord ? (@ != null)))')
          THEN (job.follow_ups - 'chain' || jsonb_build_object(
              '{_CUT}', true, 'chain', jsonb_build_array(job.follow_ups #> '{{chain,-1}}')))::text
          ELSE job.follow_ups::text END"""

# Where the row before has nothing else, one pass over it takes out the last element.
# Locks: nothing; the end of the step before has locked that row. Index: primary key.
# Two at once: only the run that ends the step before comes here, and it is fenced.
_REST = """
SELECT %s::jsonb || CASE before.follow_ups - 'chain' WHEN '{}' THEN before.follow_ups #- '{chain,-1}'
    ELSE jsonb_build_object('chain', (before.follow_ups -> 'chain') - (-1)) END
FROM jobs_job AS before WHERE before.id = %s::uuid
"""


def is_cut(follow_ups: Any) -> bool:
    """Whether a claim has brought only the next step of its job's chain."""
    return follow_ups.get(_CUT) is True


def with_rest(follow_ups: dict[str, Any], *, before: UUID) -> RawSQL:
    """The follow-ups of a new row. PostgreSQL adds the later steps from the row of the step before."""
    return RawSQL(_REST, [as_json(follow_ups, wrapped=2), before])  # noqa: S611 - its values are parameters


def rest_of(job_id: UUID) -> list[Any]:
    """The steps behind the next one, last step first, from the row of the step that ends."""
    follow_ups: dict[str, Any] = Job.objects.values_list("follow_ups", flat=True).get(pk=job_id)
    return list(follow_ups["chain"])[:-1]
