"""Pods are packed, so that whole prefixes stay free: the story of `make churn`, told for a few days."""

from __future__ import annotations

from statistics import fmean

from reconciler import ideal
from reconciler.planner import limits
from tests.bench import churn


def test_a_week_of_churn_leaves_more_prefixes_free_than_random_choice_does() -> None:
    """The same pods, by the same planner: fewer prefixes held, and nearly always one to give back."""
    limit = limits.lookup(churn.TYPE)
    assert limit is not None
    pods = churn.story(days=6)
    dense = churn.live(ideal.World(churn.SETTINGS, limit), pods, days=6)
    scattered = churn.live(churn.Scattered(churn.SETTINGS, limit), pods, days=6)
    assert [hour.pods for hour in dense] == [hour.pods for hour in scattered]
    assert fmean(h.prefixes for h in dense) < fmean(h.prefixes for h in scattered)
    assert fmean(h.free for h in dense) > fmean(h.free for h in scattered) + 0.5
