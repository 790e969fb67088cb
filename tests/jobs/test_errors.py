import pickle

import pytest

from jobs.errors import RateLimited


def test_a_rate_limit_crosses_from_a_pool_process_to_its_worker() -> None:
    for error in (RateLimited(retry_after_seconds=2.5), RateLimited("429", retry_after_seconds=7)):
        again = pickle.loads(pickle.dumps(error))
        assert (str(again), again.retry_after_seconds) == (str(error), error.retry_after_seconds)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 8 * 24 * 3600])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="retry_after_seconds"):
        RateLimited(retry_after_seconds=seconds)
