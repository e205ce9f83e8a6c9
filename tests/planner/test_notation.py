"""What is written down is read back the same."""

from __future__ import annotations

import dataclasses
import json

import pytest

from ledger import model
from reconciler.planner import actions, notation
from tests.planner.rows import NODE, eni, intent

VERBS: list[actions.CloudAction] = [
    actions.CreateEni("subnet-1", ("sg-1", "sg-2"), "d", 3, (("a", "b"),)),
    actions.AttachEni("eni-1", "i-1", 2, 1),
    actions.SetDeleteOnTermination("eni-1", "attach-1"),
    actions.AssignAddresses("eni-1", 4),
    actions.UnassignAddresses("eni-1", ("10.0.0.1", "10.0.0.2")),
    actions.DetachEni("eni-1", "attach-1"),
    actions.DeleteEni("eni-1"),
]


@pytest.mark.parametrize(
    "value",
    [
        *VERBS,
        NODE,
        model.Unknown("away", 7),
        model.ObservedCloud(
            1, "ec2", (model.ObservedEni(eni(1), ("10.0.0.1",), (), {"key": "value"}),)
        ),
        actions.Outcome(
            VERBS[0], "Code", "text", unknown=True, result={"addresses": ("10.0.0.1",)}
        ),
        {"plain": (1, None, True, "text")},
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_survives_json(value: object) -> None:
    """Nouns, verbs and plain data come back equal, with tuples where they had tuples."""
    assert value == notation.read(json.loads(json.dumps(notation.written(value))))


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: type(verb).__name__)
def test_an_intents_row_gives_its_verb_back(verb: actions.CloudAction) -> None:
    """The arguments passed through JSON, as the ledger keeps them."""
    row = intent(verb, "sent")
    kept = dataclasses.replace(row, arguments=json.loads(json.dumps(row.arguments)))
    assert verb == notation.action(kept)


def test_what_is_neither_noun_nor_data_is_refused() -> None:
    """Nothing is turned into text by accident, and no name conjures up a class."""
    with pytest.raises(TypeError):
        notation.written({"thing": object()})
    with pytest.raises(KeyError):
        notation.read({"is": "Popen", "args": "true"})
