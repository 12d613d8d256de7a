"""The short form of `make adversarial`: every field and every kind once, and the attacks, smaller.

Nothing here is an absolute time: what a hostile body costs others is held against what harmless
bodies of the same sizes cost them, on the same machine in the same minute.
"""

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.adversarial import attack
from tests.adversarial.attack import Attack
from tests.adversarial.bodies import TAPE, Attempt, attempts, posted
from tests.adversarial.bystander import Bystander, watching
from tests.adversarial.compare import Comparison, kept_memory
from tests.adversarial.document import written
from tests.adversarial.judge import Bounds, Judge
from tests.adversarial.run import (
    SMALL,
    Tenants,
    document_of,
    every_attempt,
    harmless,
    headers_of,
    judge_all,
    memory,
    print_bodies,
    print_outcome,
    serving,
)
from tests.adversarial.wire import ask
from tests.server import TICKERTAPE, RunningServer

HEALTH = 5.0  # times the slowest under harmless load
GAP = 5.0  # times the longest beside the twin
SCALE = 0.2  # of each attack
SEED = 20261127
NO_TAPE = "A" * 22  # of the form of one
SMALLER = [one for one in attack.ATTACKS if one.name.startswith(("A5", "A7", "A9"))]

pytestmark = [pytest.mark.alone, pytest.mark.timeout(1200)]

Served = tuple[RunningServer, Tenants]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(TICKERTAPE, tmp_path_factory.mktemp("server"), keys=True) as served:
        yield served
        assert served[0].process.poll() is None


@pytest.fixture
def bystander(served: Served) -> Iterator[Bystander]:
    server, tenants = served
    with watching(server.port, tenants.bystander) as bystander:
        yield bystander


def test_there_are_thousands_and_the_same_each_time(served: Served) -> None:
    document = document_of(*served)
    one, other = (every_attempt(document, 5000, SEED) for _ in range(2))
    assert [attempt.name for attempt in one] == [attempt.name for attempt in other]
    assert len({attempt.name for attempt in one}) == len(one) >= 5000
    sampled = every_attempt(document, 0, SEED, brief=True)
    for of in (_field, _kind):
        assert set(map(of, attempts(document, SMALL))) <= set(map(of, sampled))


def _field(attempt: Attempt) -> tuple[str, str]:
    return attempt.route, attempt.field


def _kind(attempt: Attempt) -> str:
    return attempt.kind


def test_a_plain_value_reaches_its_field(served: Served) -> None:
    """Otherwise a hostile one would be refused for what is around it, and never looked at."""
    server, tenants = served
    document = document_of(server, tenants)
    elsewhere = []
    for operation in document.operations():
        for field in document.fields(operation):
            if field.place != "body" or not field.path or field.path[0] == "*":
                continue  # a field of any name has no value but null
            value = json.dumps(document.valid(field.schema)).encode()
            request = posted(operation, written(document.holding(operation, field.path), value))
            request = replace(request, target=request.target.replace(TAPE, NO_TAPE))
            answer = ask(server.port, request.written(headers_of(tenants.attacker)), 60)
            if answer.status in (400, 422):
                error = answer.json()["error"]
                named = error["param"] or error["message"]
                if named.partition(".")[0] != field.path[0]:
                    elsewhere.append((operation.name, field.name, named))
            elif answer.status not in (200, 201, 404, 408):
                elsewhere.append((operation.name, field.name, answer.body[:200]))
    assert not elsewhere


def test_no_body_costs_others(served: Served, bystander: Bystander) -> None:
    server, tenants = served
    every = every_attempt(document_of(server, tenants), 0, SEED, brief=True)
    judge = Judge(server.port, bystander, Bounds(0, GAP), tenants.attacker)
    usual = judge.accustom(harmless(every))
    judge.bounds = Bounds(HEALTH * usual.slowest_health, GAP, health_times=HEALTH)
    before = memory(server)
    found = judge_all(judge, every)
    print_bodies(judge)
    assert not found
    assert not kept_memory(before, memory(server))


@pytest.mark.parametrize("one", SMALLER, ids=lambda one: one.name.partition(":")[0])
def test_no_attack_costs_others(served: Served, bystander: Bystander, one: Attack) -> None:
    server, tenants = served
    target = attack.Target(server.port, headers_of(tenants.attacker), SCALE)
    comparison = Comparison(target, bystander, Bounds(float("inf"), GAP), lambda: memory(server))
    outcome = print_outcome(comparison.carry_out(one))
    assert not outcome.violations
