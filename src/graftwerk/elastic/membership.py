"""Who is in the group: decisions that all members share, through a store that outlives them.

Members call the same collectives in the same order, and each call is a *decision* with a number.
A member posts its fact; once every member has posted, or is known to be gone, one of them writes
down whose facts count. It does so with the store's compare-and-set: whoever comes first decides,
and all read the same. A member without a fact in a decision has departed with it. So membership
changes at the same point of the program everywhere, and two groups can't go on separately.
"""

from __future__ import annotations

import base64
import pickle
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

from graftwerk.errors import APART, GraftwerkError

NEWCOMERS = "newcomers"
REMEMBERED = 256
"""Decisions that stay in the store, for members that are behind and for newcomers."""
LAST_CALL = 5.0
"""Seconds for a thread's last word with the store; one that is in it when Python ends aborts."""


class ApartError(GraftwerkError):
    """This worker can't go on with the group: it was given up, or too few are left."""

    exit_code = APART


@dataclass(frozen=True)
class Member:
    """A worker of the group."""

    uid: int
    """Different for each process that ever takes part."""
    slot: int
    """Its rank when it was started: a restarted worker has the same."""
    node: int
    address: tuple[str, int]


@dataclass(frozen=True)
class Decision:
    facts: Mapping[int, Any]
    """By uid, of those that go on."""
    departed: frozenset[int]
    joined: tuple[Member, ...] = ()
    apart: str | None = None
    """Why nobody may go on, where that is so."""


def keepers(present: Collection[int], lost: Mapping[int, Collection[int]]) -> list[int]:
    """The members that all reach each other; ``lost[i]`` are those that i can't reach.

    Whoever is cut off from most others goes first; between equals, the higher number.
    """
    kept = sorted(present)
    while True:
        apart = {i: {j for j in kept if j in lost[i] or i in lost[j]} - {i} for i in kept}
        worst = max(kept, key=lambda i: (len(apart[i]), i))
        if not apart[worst]:
            return kept
        kept.remove(worst)


def reported(kept: Collection[int], lost: Mapping[int, Collection[int]]) -> set[int]:
    """Whom more than half of `kept` can't reach; one alone may be the one that is cut off."""
    found = {uid for i in kept for uid in lost[i]}
    return {uid for uid in found if 2 * sum(uid in lost[i] for i in kept) > len(kept)}


def has_quorum(kept: Collection[int], members: Collection[int], ended: Collection[int]) -> bool:
    """Half of the members that have not provably ended; the store settles ties."""
    return 2 * len(kept) >= len(set(members) - set(ended))


class Heartbeats:
    """Tells the store that this worker lives, and learns who has fallen silent."""

    def __init__(self, store: Store, uid: int, timeout: float) -> None:
        self._store, self._uid, self._timeout = store, uid, timeout
        self._watched: set[int] = set()
        self._seen: dict[int, tuple[bytes, float]] = {}
        self._silent: set[int] = set()
        self._overdue_since: float | None = None
        self._count = 0
        self._ended = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def watch(self, uids: Collection[int]) -> None:
        self._watched = set(uids) - {self._uid}

    def silent(self, uid: int) -> bool:
        """Whether a watched worker has not been heard of for `timeout` seconds."""
        return uid in self._silent

    @property
    def store_is_lost(self) -> bool:
        """Whether it did not answer for `timeout` seconds, of which this process was awake."""
        now = time.monotonic()
        if now - self._reached <= self._timeout:
            self._overdue_since = None
            return False
        self._overdue_since = self._overdue_since or now
        return now - self._overdue_since > 1.0

    def stop(self) -> None:
        self._ended.set()
        self._thread.join(LAST_CALL)

    def _beat(self) -> None:
        self._count += 1
        self._store.set(f"beat/{self._uid}", str(self._count))
        self._reached = time.monotonic()

    def _run(self) -> None:
        interval = min(1.0, self._timeout / 5)
        while not self._ended.wait(interval):
            paused = time.monotonic() - self._reached > self._timeout / 2
            try:
                self._beat()
                self._look(forgive=paused)
            except RuntimeError:  # the store is gone: `store_is_lost` will say so
                return

    def _look(self, *, forgive: bool) -> None:
        """After a pause of this process itself, everybody's time starts anew."""
        uids = sorted(self._watched)
        beats = self._store.multi_get([f"beat/{uid}" for uid in uids]) if uids else []
        now = time.monotonic()
        for uid, beat in zip(uids, beats, strict=True):
            before = self._seen.get(uid)
            if before is None or before[0] != beat or forgive:
                self._seen[uid] = (beat, now)
        self._silent = {uid for uid in uids if now - self._seen[uid][1] > self._timeout}


@dataclass
class Vote:
    """A collective call of this worker, and its outcome."""

    number: int
    members: tuple[Member, ...]
    """Those that take part, as the program knew them when it made the call."""
    fact: Any
    posts: bool = True
    """False: the decision of others, from before this worker joined."""
    admits: bool = False
    """Whether newcomers may join with it."""
    decision: Decision | None = None


@dataclass
class Ballot:
    """Posts this worker's facts and brings decisions about, on a thread of its own."""

    store: Store
    me: Member
    beats: Heartbeats
    lost: Callable[[], set[int]]
    """Workers that can't be reached directly."""
    changed: threading.Condition = field(default_factory=threading.Condition)
    failure: GraftwerkError | None = None
    _gone: set[int] = field(default_factory=set[int])
    _votes: list[Vote] = field(default_factory=list[Vote])
    _ended: bool = False
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        with self.changed:
            self._ended = True
            self.changed.notify_all()
        if self._thread is not None:
            self._thread.join(LAST_CALL)

    def submit(self, vote: Vote) -> None:
        with self.changed:
            self._votes.append(vote)
            self.changed.notify_all()

    def wait(self, vote: Vote) -> Decision:
        """Raises `ApartError` where this worker or its group can't go on."""
        with self.changed:
            while vote.decision is None:
                if self.failure is not None:
                    raise self.failure
                if self.beats.store_is_lost:
                    raise ApartError(
                        "the store that holds the group together can't be reached; "
                        "this worker stops, so that no two groups train separately"
                    )
                self.changed.wait(0.1)
        if vote.decision.apart is not None:
            raise ApartError(vote.decision.apart)
        if self.me.uid in vote.decision.departed:
            raise ApartError("the others have gone on without this worker, which was silent")
        return vote.decision

    def _run(self) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(lambda: bool(self._votes) or self._ended)
                if not self._votes:
                    return
                vote = self._votes.pop(0)
            try:
                decision = self._settle(vote)
                self._announce(decision)
            except RuntimeError as error:
                with self.changed:
                    self.failure = ApartError(f"the group's store fails ({error})")
                    self.changed.notify_all()
                return
            with self.changed:
                self._gone |= decision.departed
                vote.decision = decision
                self.changed.notify_all()

    def _settle(self, vote: Vote) -> Decision:
        if vote.posts:
            fact = packed((vote.fact, self.lost()))
            self.store.set(_fact_key(vote.number, self.me.uid), fact)
        pause = 0.001
        while not self.store.check([_decision_key(vote.number)]):
            members = [m.uid for m in vote.members if m.uid not in self._gone]
            if vote.posts and self._decides(members):
                decision = self._propose(vote, members)
                if decision is not None:
                    return decision
            if self._ended:
                return Decision({}, frozenset())
            time.sleep(pause)
            pause = min(0.02, 1.5 * pause)
        return unpacked(self.store.get(_decision_key(vote.number)))

    def _announce(self, decision: Decision) -> None:
        """To the launcher and to newcomers; everybody does, for one that does may die."""
        if decision.apart is not None:
            self.store.set("apart", "")
        for uid in decision.departed:
            self.store.set(f"departed/{uid}", "")
        for member in decision.joined:
            self.store.set(f"admitted/{member.uid}", "")

    def _decides(self, members: Sequence[int]) -> bool:
        """The first who is there; anybody could, but then all would ask the store."""
        before = members[: members.index(self.me.uid)] if self.me.uid in members else []
        return all(self._is_absent(uid) for uid in before)

    def _is_absent(self, uid: int) -> bool:
        return uid in self.lost() or self.beats.silent(uid) or self._has_ended(uid)

    def _has_ended(self, uid: int) -> bool:
        """Whether the launcher saw the process end."""
        return self.store.check([f"ended/{uid}"])

    def _propose(self, vote: Vote, members: Sequence[int]) -> Decision | None:
        """The decision, once the missing facts are known never to come."""
        posted = [uid for uid in members if self.store.check([_fact_key(vote.number, uid)])]
        found = self.store.multi_get([_fact_key(vote.number, uid) for uid in posted])
        facts: dict[int, tuple[Any, set[int]]] = {
            uid: unpacked(fact) for uid, fact in zip(posted, found, strict=True)
        }
        lost = {uid: reached for uid, (_, reached) in facts.items()}
        missing = set(members) - set(posted)
        ended = {uid for uid in missing if self._has_ended(uid)}
        proven = ended | {uid for uid in missing if self.beats.silent(uid)}
        kept = keepers(posted, lost)
        if not missing <= proven | reported(kept, lost):
            return None
        if has_quorum(kept, members, ended):
            decision = Decision(
                {uid: facts[uid][0] for uid in kept},
                frozenset({m.uid for m in vote.members} - set(kept)),
                self._newcomers(vote, kept) if vote.admits else (),
            )
        elif missing <= proven:
            decision = Decision({}, frozenset(), apart=_too_few(len(kept), len(members)))
        else:
            return None
        return self._write(vote.number, decision)

    def _write(self, number: int, decision: Decision) -> Decision:
        key = _decision_key(number)
        decided: Decision = unpacked(self.store.compare_set(key, "", packed(decision)))
        old = number - REMEMBERED
        if old >= 0:
            self.store.delete_key(_decision_key(old))
            for uid in decided.facts:
                self.store.delete_key(_fact_key(old, uid))
        return decided

    def _newcomers(self, vote: Vote, kept: Collection[int]) -> tuple[Member, ...]:
        """Those that asked to join, one for each free slot."""
        if not self.store.check([NEWCOMERS]):
            return ()
        slots = {member.slot for member in vote.members if member.uid in kept}
        found: list[Member] = []
        for text in self.store.get(NEWCOMERS).split():
            member: Member = unpacked(text)
            settled = [f"admitted/{member.uid}", f"ended/{member.uid}"]
            if member.slot not in slots and not any(self.store.check([key]) for key in settled):
                slots.add(member.slot)
                found.append(member)
        return tuple(found)


def _too_few(kept: int, members: int) -> str:
    return (
        f"only {kept} of {members} workers can still be reached, which is no majority; they stop, "
        "so that no two groups train separately. The same command goes on from the last checkpoint"
    )


def _fact_key(number: int, uid: int) -> str:
    return f"fact/{number}/{uid}"


def _decision_key(number: int) -> str:
    return f"decision/{number}"


def packed(value: Any) -> str:
    """As text, for the store's compare-and-set takes nothing else."""
    return base64.b85encode(pickle.dumps(value)).decode()


def unpacked(text: bytes | str) -> Any:
    return pickle.loads(base64.b85decode(text))
