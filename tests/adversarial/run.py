"""The long form: all bodies, all attacks, absolute bounds."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from tests.adversarial import attack
from tests.adversarial.bodies import Attempt, attempts, chosen
from tests.adversarial.bystander import watching
from tests.adversarial.compare import Comparison, Outcome, kept_memory
from tests.adversarial.document import Document
from tests.adversarial.judge import Bounds, Judge, Violation, percentile
from tests.adversarial.pairs import pairs
from tests.adversarial.wire import Headers
from tests.server import RunningServer, running

LIMIT = 2 << 20  # --max-body-size
SMALL = LIMIT >> 3  # of single fields in the short form
BOUNDS = Bounds(health=100.0, gap=2.0)
TAPE_MEMORY = 64 << 20
FLAGS = ("--tape-memory", str(TAPE_MEMORY), "--log-level", "warning")
ENGINE = 1200 << 20  # bytes, with a full KV cache
ENGINE_MODULE = "model.process"
EVERY = 250  # bodies, between two lines of progress


@dataclass(frozen=True)
class Options:
    server_command: Path
    bodies: int
    seed: int
    keys: bool
    only: str
    sample: bool
    no_attacks: bool
    no_bodies: bool


@dataclass(frozen=True)
class Tenants:
    """The keys of both; None where there are none."""

    attacker: str | None = None
    bystander: str | None = None


@contextlib.contextmanager
def serving(
    command: Path, folder: Path, keys: bool, *flags: str
) -> Iterator[tuple[RunningServer, Tenants]]:
    tenants = Tenants("a-key-of-the-attacker", "a-key-of-the-bystander") if keys else Tenants()
    file = folder / "keys"
    file.write_text(f"{tenants.attacker}\n{tenants.bystander}\n")
    locked = ("--api-key-file", str(file)) if keys else ()
    with running(folder / "log", *FLAGS, *flags, *locked, command=(command,)) as server:
        yield server, tenants


def document_of(server: RunningServer, tenants: Tenants) -> Document:
    key = {"Authorization": f"Bearer {tenants.attacker}"} if tenants.attacker else {}
    return Document(httpx.get(f"{server.url}/openapi.json", headers=key).json())


def every_attempt(document: Document, number: int, seed: int, brief: bool = False) -> list[Attempt]:
    """All pairs, and of the single fields as many as it takes; `brief`: fewer, and smaller."""
    by_hand = list(pairs(LIMIT, brief))
    single = attempts(document, SMALL if brief else LIMIT)
    return by_hand + chosen(single, number - len(by_hand), seed)


def harmless(all_of_them: list[Attempt]) -> list[Attempt]:
    """One of each route, and of a few sizes."""
    seen: set[tuple[str, int]] = set()
    kept = []
    for one in all_of_them:
        if (one.route, one.size) not in seen and one.field != "pair":
            seen.add((one.route, one.size))
            kept.append(one)
    return kept


def headers_of(key: str | None) -> Headers:
    return (("Authorization", f"Bearer {key}"),) if key else ()


def memory(server: RunningServer) -> int:
    """Bytes of the server and of what it has started; what they share is counted once.

    The engine fills its KV cache bit by bit, and that is no leak: so much it is always given.
    """
    parts = memory_of_each(server)
    return sum(parts.values()) + max(0, ENGINE - parts[ENGINE_MODULE])


def memory_of_each(server: RunningServer) -> Counter[str]:
    """Of the server and the modules that its children run."""
    root = psutil.Process(server.process.pid)
    found = Counter[str]()
    for process in [root, *root.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            used = process.memory_full_info().pss
            modules = [part for part in process.cmdline() if part.startswith("model.")]
            found[modules[0] if modules else "server"] += used
    return found


def run(options: Options, folder: Path) -> bool:
    """Whether nothing was wrong."""
    with (
        serving(options.server_command, folder, options.keys) as (server, tenants),
        watching(server.port, tenants.bystander) as bystander,
    ):
        judge = Judge(server.port, bystander, BOUNDS, tenants.attacker)
        target = attack.Target(server.port, headers_of(tenants.attacker), 1.0)
        comparison = Comparison(target, bystander, BOUNDS, lambda: memory(server))
        violations: list[Violation] = []
        if not options.no_bodies:
            print_memory(server)
            violations += send_bodies(judge, comparison, document_of(server, tenants), options)
            print_memory(server)
        if not options.no_attacks:
            for one in attack.chosen(options.only):
                violations += print_outcome(comparison.carry_out(one)).violations
    print(f"{len(violations)} violations")
    for violation in violations:
        print(f"  {violation}")
    return not violations


def send_bodies(
    judge: Judge, comparison: Comparison, document: Document, options: Options
) -> list[Violation]:
    number = 0 if options.sample else options.bodies
    every = every_attempt(document, number, options.seed, options.sample)
    judge.accustom(harmless(every))
    print(f"under harmless load: gaps p99 {judge.before:.1f} ms", flush=True)
    before = comparison.memory_at_rest()
    wanted = [one for one in every if options.only in one.name]
    found = judge_all(judge, wanted)
    after = comparison.memory_at_rest()
    print_bodies(judge)
    print(f"memory {before >> 20} MB before, {after >> 20} MB after\n", flush=True)
    kept = [Violation("all bodies", what) for what in kept_memory(before, after)]
    return found + kept


def judge_all(judge: Judge, attempts: list[Attempt]) -> list[Violation]:
    """What took too long must do so once more at the end: a machine may be slow for a while."""
    found: list[Violation] = []
    slow: list[Attempt] = []
    for number, one in enumerate(attempts, 1):
        violations = judge.judge(one)
        print_violations(violations)
        found += [violation for violation in violations if not violation.timed]
        if any(violation.timed for violation in violations):
            slow.append(one)
        if number % EVERY == 0:
            print(f"{number} of {len(attempts)}, {len(found) + len(slow)} violations", flush=True)
    print(f"once more {len(slow)} that took too long", flush=True)
    again = [violation for one in slow for violation in judge.judge(one)]
    print_violations(again)
    return found + again


def print_memory(server: RunningServer) -> None:
    parts = memory_of_each(server).items()
    print(", ".join(f"{name} {used >> 20} MB" for name, used in parts), flush=True)


def print_violations(violations: list[Violation]) -> None:
    for violation in violations:
        print(f"  {violation}", flush=True)


def print_bodies(judge: Judge) -> None:
    report = judge.report
    print(f"\n{report.sent} bodies: {dict(sorted(report.statuses.items()))}")
    print(f"tried again {report.retried}")
    print(f"slowest /health {report.slowest_health:.0f} ms: {report.slowest_name}")
    print(f"worst ITL ratio {report.worst_ratio:.2f}: {report.worst_name}")
    during = percentile(report.gaps, 99)
    print(f"gaps p99 {judge.before:.1f} ms before, {during:.1f} ms during\n", flush=True)


def print_outcome(outcome: Outcome) -> Outcome:
    print(
        f"{outcome.attack.name}\n  twin    {outcome.plain.told}\n  attack  {outcome.hostile.told}"
    )
    for violation in outcome.violations:
        print(f"  VIOLATION {violation.what}", flush=True)
    return outcome
