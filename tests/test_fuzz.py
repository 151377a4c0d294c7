"""A few cases of every target of the fuzzing, always the same ones."""

import fuzzing
import pytest


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", fuzzing.targets(), ids=lambda target: target.name.replace(" ", "-"))
def test_whatever_bytes_come_are_read_or_refused_in_a_line_and_nothing_stays(target, monkeypatch):
    count, failure = fuzzing.tried(target, 3 + target.share, None)
    assert failure is None, failure
    assert count >= target.share
