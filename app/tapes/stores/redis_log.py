"""What Redis holds of tapes, and the few things that are done with it: each in one round trip.

Of a tape there is a hash (its plan, its state, who writes it), a stream with an element `0-n` for
entry n, and a hash that counts its readers by replica. Of a replica there is a key that lives for
`LEASE` seconds after its last beat, the set of the tapes that it writes, and a stream of what the
others tell it. Whoever does not write a tape cannot append to it, and no entry can be appended
twice: `XADD` refuses an id that is not above all there are.

The scripts name keys that they find on their way, which Redis Cluster does not allow: one server,
with replicas and Sentinel if need be.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError

from app.tapes.plan import Plan
from app.tapes.tape import Choice, End, Entry, Tape
from model.protocol.messages import FinishReason, Logprob

LEASE: Final = 3.0  # seconds without a beat after which a replica's tapes are others'
_BLOCK: Final = 1000  # milliseconds that one XREAD waits
_TIMEOUT: Final = 5.0  # seconds for an answer; more than it waits by itself
_CLAIM_TTL: Final = 86400  # seconds, should no one ever end the tape
_INBOX_LENGTH: Final = 100_000

AppendResult = Literal[0, 1, 2]
WRITTEN: Final = 0
FENCED: Final = 1  # another replica writes this tape
MISSING: Final = 2  # Redis has lost it

_PUT = """
local meta, claim = 'tickertape:tape:' .. ARGV[2], ARGV[4]
if claim ~= '' then
  local begun = redis.call('GET', 'tickertape:claim:' .. claim)
  if begun and begun ~= ARGV[2] and redis.call('EXISTS', 'tickertape:tape:' .. begun) == 1 then
    return begun
  end
  redis.call('SET', 'tickertape:claim:' .. claim, ARGV[2], 'EX', ARGV[5])
end
redis.call('HSET', meta, 'writer', ARGV[1], 'plan', ARGV[3], 'claim', claim)
redis.call('SADD', 'tickertape:tapes:' .. ARGV[1], ARGV[2])
return false
"""

# ARGV: writer, ttl in ms, then for each tape: id, state, anew, first, count, ended, the entries.
# Entries that are there already were written by us, in a call whose answer was lost. If the one
# before the first is missing, Redis has lost the tape, unless the tape is written anew.
# Nothing is confirmed that was not written: where Redis refuses (full, read-only, no disk), the
# script fails with Redis's error.
_APPEND = """
local results, i = {}, 3
while i <= #ARGV do
  local id, state, anew = ARGV[i], ARGV[i + 1], ARGV[i + 2] == '1'
  local first, count, ended = tonumber(ARGV[i + 3]), tonumber(ARGV[i + 4]), ARGV[i + 5] == '1'
  local meta, log = 'tickertape:tape:' .. id, 'tickertape:log:' .. id
  local writer = redis.call('HGET', meta, 'writer')
  if writer == ARGV[1] and anew then redis.call('DEL', log) end
  local newest = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  local last = newest and tonumber(string.sub(newest[1], 3)) or 0
  if not writer or (writer == ARGV[1] and last < first - 1 and not anew) then
    results[#results + 1] = 2
  elseif writer ~= ARGV[1] then
    results[#results + 1] = 1
  else
    for n = 0, count - 1 do
      if first + n > last then
        redis.call('XADD', log, '0-' .. string.format('%d', first + n), 'e', ARGV[i + 6 + n])
      end
    end
    if state ~= '' then redis.call('HSET', meta, 'state', state) end
    if ended then
      redis.call('SREM', 'tickertape:tapes:' .. writer, id)
      local claim = redis.call('HGET', meta, 'claim')
      if claim ~= '' then redis.call('PEXPIRE', 'tickertape:claim:' .. claim, ARGV[2]) end
      for _, key in ipairs({meta, log, 'tickertape:readers:' .. id}) do
        redis.call('PEXPIRE', key, ARGV[2])
      end
    end
    results[#results + 1] = 0
  end
  i = i + 6 + count
end
return results
"""

# ARGV: what, tape, from, difference in readers. To whoever writes the tape now.
_TELL = """
local writer = redis.call('HGET', 'tickertape:tape:' .. ARGV[2], 'writer')
if not writer then return end
if ARGV[4] ~= '0' then
  redis.call('HINCRBY', 'tickertape:readers:' .. ARGV[2], ARGV[3], ARGV[4])
end
redis.call('XADD', 'tickertape:inbox:' .. writer, 'MAXLEN', '~', ARGV[5], '*',
  'what', ARGV[1], 'tape', ARGV[2], 'from', ARGV[3], 'readers', ARGV[4])
"""

# ARGV: the dead, the heir. One tape at a time, so that all who live share them.
_INHERIT = """
if redis.call('EXISTS', 'tickertape:replica:' .. ARGV[1]) == 1 then return false end
local id = redis.call('SPOP', 'tickertape:tapes:' .. ARGV[1])
if not id then
  redis.call('SREM', 'tickertape:replicas', ARGV[1])
  redis.call('DEL', 'tickertape:inbox:' .. ARGV[1])
  return false
end
redis.call('HSET', 'tickertape:tape:' .. id, 'writer', ARGV[2])
redis.call('SADD', 'tickertape:tapes:' .. ARGV[2], id)
return id
"""


# ARGV: tape. All at one moment. A transaction would do, but a full Redis takes none, not even one
# that only reads.
_LOAD = """
local meta = redis.call('HGETALL', 'tickertape:tape:' .. ARGV[1])
if #meta == 0 then return false end
local log = redis.call('XRANGE', 'tickertape:log:' .. ARGV[1], '-', '+')
return {meta, log, redis.call('HGETALL', 'tickertape:readers:' .. ARGV[1])}
"""


class State(msgspec.Struct, array_like=True, frozen=True):
    """Of a tape, what its entries do not say. Times in milliseconds. It changes a few times."""

    queue_ms: float | None
    ttft_ms: float | None
    choices: list[tuple[bool, int, FinishReason | None, str | None]]


class _Written(msgspec.Struct, array_like=True, frozen=True):
    text: str
    token_id: int
    logprob: Logprob | None
    index: int


_Element = msgspec.msgpack.Decoder(_Written | End)  # an array, or a map
_plan_decoder: Final = msgspec.msgpack.Decoder(Plan)
_state_decoder: Final = msgspec.msgpack.Decoder(State)
_encode: Final = msgspec.msgpack.encode


@dataclass(frozen=True, slots=True)
class AppendBatch:
    """What is new on a tape: entries from number `first` on, and its state.

    `anew`: these are all the entries that there are; those that Redis has are replaced.
    """

    tape: Tape
    first: int
    items: Sequence[Entry | End]
    state: State | None  # None where it is known
    anew: bool = False

    @property
    def last(self) -> int:
        return self.first + len(self.items) - 1

    @property
    def ended(self) -> bool:
        return bool(self.items) and isinstance(self.items[-1], End)


@dataclass(frozen=True, slots=True)
class Stored:
    """A tape as Redis has it: its newest entries, as far back as none is missing between."""

    plan: Plan
    choices: list[Choice]
    queue_ms: float | None
    ttft_ms: float | None
    items: list[Entry | End]
    first: int  # the number of the first item
    writer: str
    readers: Mapping[str, int]  # by replica


@dataclass(frozen=True, slots=True)
class InboxMessage:
    """What another replica wants of the writer of a tape."""

    what: str
    tape_id: str
    sender: str
    readers: int  # so many more


class RedisLog:
    """One replica's connection. Raises redis.RedisError where Redis cannot be reached."""

    def __init__(self, url: str, replica: str, ttl: float) -> None:
        """`ttl`: seconds that an ended tape is kept. Raises ValueError for what is no Redis URL."""
        self.replica = replica
        self._ttl_ms = max(1, round(ttl * 1000))
        self._redis = Redis.from_url(
            url,
            socket_timeout=_TIMEOUT,
            socket_connect_timeout=_TIMEOUT,
            # A connection of the pool may have died while it was idle: that is no trouble yet. All
            # who ask here ask again after an error in any case.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        )
        self._put = self._redis.register_script(_PUT)
        self._append = self._redis.register_script(_APPEND)
        self._tell = self._redis.register_script(_TELL)
        self._inherit = self._redis.register_script(_INHERIT)
        self._load = self._redis.register_script(_LOAD)
        self._told_up_to = "0-0"

    async def close(self) -> None:
        await self._redis.aclose()

    # ---- tapes that this replica writes

    async def put(self, tape_id: str, plan: Plan) -> str | None:
        """Begin a tape; or the id of the one that has its claim."""
        claim = plan.claim.key if plan.claim else ""
        begun = await self._put(args=[self.replica, tape_id, _encode(plan), claim, _CLAIM_TTL])
        return begun.decode() if begun else None

    async def append(self, batches: Sequence[AppendBatch]) -> list[AppendResult]:
        """Write all of them, or of each tell why not."""
        arguments: list[Any] = [self.replica, self._ttl_ms]
        for batch in batches:
            arguments += (
                batch.tape.id,
                _encode(batch.state) if batch.state else b"",
                int(batch.anew),
                batch.first,
                len(batch.items),
                int(batch.ended),
            )
            arguments += map(_element, batch.items)
        results: list[AppendResult] = await self._append(args=arguments)
        return results

    # ---- any tape

    async def load(self, tape_id: str) -> Stored | None:
        """All that is kept of a tape."""
        reply = await self._load(args=[tape_id])
        if not reply:
            return None
        meta, readers = _pairs(reply[0]), _pairs(reply[2])
        plan = _plan_decoder.decode(meta[b"plan"])
        state = _state_decoder.decode(meta[b"state"]) if b"state" in meta else None
        numbered = [(_number(element_id), _item(fields[1])) for element_id, fields in reply[1]]
        first, items = _without_gap(numbered)
        return Stored(
            plan,
            _choices(plan, state, items),
            state.queue_ms if state else None,
            state.ttft_ms if state else None,
            items,
            first,
            meta[b"writer"].decode(),
            {replica.decode(): int(count) for replica, count in readers.items()},
        )

    async def claimant(self, claim: str) -> str | None:
        """The id of the tape that has this claim."""
        tape_id: Any = await self._redis.get(f"tickertape:claim:{claim}")
        return tape_id.decode() if tape_id else None

    async def tell_writer(self, what: str, tape_id: str, readers: int = 0) -> None:
        """Have its writer do something; so many more readers follow it here."""
        await self._tell(args=[what, tape_id, self.replica, readers, _INBOX_LENGTH])

    async def wake(self) -> None:
        """Let `news` return, to look at other tapes as well."""
        await self._redis.xadd(
            _inbox(self.replica), {"what": "wake", "tape": "", "from": "", "readers": 0}
        )

    async def news(
        self, followed: Mapping[str, int]
    ) -> tuple[list[InboxMessage], dict[str, list[tuple[int, Entry | End]]]]:
        """Wait for what others tell, and for new items of tapes, after the number of each.

        Each item has its number: entries that Redis has lost are missing, not renumbered.
        """
        inbox = _inbox(self.replica)
        positions: dict[Any, Any] = {inbox: self._told_up_to}
        positions |= {_log(tape_id): f"0-{last}" for tape_id, last in followed.items()}
        reply: Any = await self._redis.xread(positions, block=_BLOCK)
        told: list[InboxMessage] = []
        items: dict[str, list[tuple[int, Entry | End]]] = {}
        for key, elements in reply or ():
            name = key.decode()
            if name == inbox:
                self._told_up_to = elements[-1][0]
                told = [_told(fields) for _, fields in elements]
            else:
                tape_id = name.rpartition(":")[2]
                items[tape_id] = [
                    (_number(element_id), _item(fields[b"e"])) for element_id, fields in elements
                ]
        return told, items

    # ---- replicas

    async def beat(self) -> dict[str, bool]:
        """Say that this one lives. All that there are, and whether they do."""
        async with self._redis.pipeline() as pipe:
            pipe.set(f"tickertape:replica:{self.replica}", 1, px=round(LEASE * 1000))
            pipe.sadd("tickertape:replicas", self.replica)
            pipe.smembers("tickertape:replicas")
            replicas = [name.decode() for name in (await pipe.execute())[-1]]
        async with self._redis.pipeline() as pipe:
            for name in replicas:
                pipe.exists(f"tickertape:replica:{name}")
            return dict(zip(replicas, map(bool, await pipe.execute()), strict=True))

    async def die(self) -> None:
        """Have the others take this one's tapes at once."""
        await self._redis.delete(f"tickertape:replica:{self.replica}")

    async def inherit(self, dead: str) -> str | None:
        """One tape of a replica that lives no longer: from now on this one writes it."""
        tape_id = await self._inherit(args=[dead, self.replica])
        return tape_id.decode() if tape_id else None


def state_of(tape: Tape) -> State:
    """What `load` needs beside the entries."""
    choices = [
        (choice.started, choice.cached_tokens, choice.finish_reason, choice.error)
        for choice in tape.choices
    ]
    return State(tape.queue_ms, tape.ttft_ms, choices)


def _pairs(flat: Sequence[bytes]) -> dict[bytes, bytes]:
    """A hash as Redis sends it."""
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _log(tape_id: str) -> str:
    return f"tickertape:log:{tape_id}"


def _inbox(replica: str) -> str:
    return f"tickertape:inbox:{replica}"


def _number(element_id: bytes) -> int:
    return int(element_id.partition(b"-")[2])


def _without_gap(
    numbered: Sequence[tuple[int, Entry | End]],
) -> tuple[int, list[Entry | End]]:
    """The number of the first item after the last gap, and the items from it on."""
    start = 0
    for at in range(1, len(numbered)):
        if numbered[at][0] != numbered[at - 1][0] + 1:
            start = at
    first = numbered[start][0] if numbered else 1
    return first, [item for _, item in numbered[start:]]


def _told(fields: Mapping[bytes, bytes]) -> InboxMessage:
    return InboxMessage(
        fields[b"what"].decode(),
        fields[b"tape"].decode(),
        fields[b"from"].decode(),
        int(fields[b"readers"]),
    )


def _element(item: Entry | End) -> bytes:
    if isinstance(item, End):
        return _encode(item)
    return _encode(_Written(item.text, item.token_id, item.logprob, item.index))


def _item(data: bytes) -> Entry | End:
    item = _Element.decode(data)
    if isinstance(item, End):
        return item
    return Entry(item.text, item.token_id, item.logprob, item.index)


def _choices(plan: Plan, state: State | None, items: Sequence[Entry | End]) -> list[Choice]:
    """Each with the tokens that it has brought forth."""
    choices = plan.choices()
    if state:
        for choice, known in zip(choices, state.choices, strict=True):
            choice.started, choice.cached_tokens, choice.finish_reason, choice.error = known
    for item in items:
        if isinstance(item, Entry):
            choices[item.index].output_ids.append(item.token_id)
    return choices
