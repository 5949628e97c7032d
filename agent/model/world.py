"""The words for the cluster: the World that is looked at, as this node sees it in one look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from agent.model.devices import Device, Fence, Published
from agent.model.names import HARD_TAINT, SOFT_TAINT


@dataclass(frozen=True, slots=True)
class Taint:
    key: str
    value: str
    effect: str

    @property
    def withdraws(self) -> bool:
        """Whether it is ours and costs a permit: it keeps new pods away, or a fence does of which it tells."""
        return self.key == HARD_TAINT or (self.key == SOFT_TAINT and self.effect != "PreferNoSchedule")


@dataclass(frozen=True, slots=True)
class Condition:
    """A node condition; when its status last flipped is the API object's own business."""

    type: str
    status: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class About:
    """What an Event is about, when it isn't the Node."""

    kind: str
    namespace: str
    name: str
    uid: str
    version: str = "v1"  # of its API


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod bound to this node, as far as a drain asks."""

    namespace: str
    name: str
    uid: str
    owner: str = ""  # the controller's kind; empty for a pod that nobody would start again
    gpu: bool = False  # it requests a GPU, or holds one all the same
    static: bool = False  # a mirror of a file on the node
    finished: bool = False  # Succeeded or Failed
    terminating: bool = False
    stuck: bool = False  # terminating, and its grace (at most ten minutes of it) and a minute have passed
    leaves_s: int = 660  # how long it may take once it was asked: that grace and that minute
    priority: int = 0
    workload: str = ""  # namespace/Kind/name of what a person knows as its controller
    controller: About | None = None  # where an Event may be about it
    gpus: frozenset[str] | None = None  # UUIDs of the GPUs that it holds; None: not known
    claims: frozenset[str] | None = frozenset()  # those that its own annotations name; None: one that can't be told
    devices: frozenset[Device] | None = None  # what its ResourceClaims were given, if it has GPUs by these alone
    tolerates: bool = False  # our hard taint
    protected: bool = False  # an annotation asks to leave it alone
    pinned: bool = False  # a volume of it is this node's own disk
    checkpoint: str = ""  # how it saves when asked: http, annotation, sigterm; empty: it declares nothing
    checkpoint_timeout_s: float = 0.0
    checkpoint_said: str = ""  # what it last answered, or what is wrong with its declaration
    asked_for: int | None = None  # the drain, by its beginning, for which this life of the agent asked it to save
    asked_s: int | None = None  # seconds since then
    saved: bool = False  # it answered that request so
    operand: str = ""  # of gpu-operator's clients of the GPU: the Node's label by which it is deployed
    ours: bool = False  # a remedy's own
    slurm_busy: bool = False  # Slinky's, and Slurm has not drained it
    unwell: tuple[str, ...] = ()  # its devices that the kubelet doesn't find healthy, in words
    unread: str = ""  # why it can't be read: it may be anything
    former: bool = False  # ours, and made for a Node object of this name that is gone

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def itself(self) -> About:
        return About("Pod", self.namespace, self.name, self.uid)


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a pod is asked to leave, for the people whose pod it is."""

    incident: str = ""  # which one it is
    why: str = ""  # a sentence


@dataclass(frozen=True, slots=True)
class Job:
    """A remedy's Job on this node."""

    name: str
    state: str  # active, succeeded, failed
    exit_code: int | None = None  # of its container, while its pod is there to be read
    said: str = ""  # why it failed, as the Job has it
    ended_s: int = 0  # seconds since this life first saw that it had ended
    finished_at: float = 0.0  # when its container ended, Unix seconds by the node's own clock; 0: not known
    unbegun: str = ""  # what kept its containers from beginning, as far as this life saw; empty: they began
    stuck: bool = False  # its pod was asked to end, should have by now, and did not: until it does, the Job is active

    @property
    def goes(self) -> str:
        """How one that is active goes, for people."""
        how = f"has not begun ({self.unbegun})" if self.unbegun else "runs"
        return f"{how}, and its pod should have ended and did not: see the node's kubelet" if self.stuck else how


@dataclass(frozen=True, slots=True)
class Diagnosed:
    """How far the diagnosis is that this agent runs, or how it ended."""

    name: str
    state: str  # active, passed, failed; undone: it could not be run to its end
    said: str = ""  # which tests failed, or why it could not
    ended_s: int = 0  # seconds since it ended


class PermitKind(StrEnum):
    """What a permit allows."""

    HOURLY = "hourly"  # one withdrawal; only where so many an hour are allowed
    WITHDRAWN = "withdrawn"  # the hard taint
    DRAINING = "draining"  # evictions


@dataclass(frozen=True, slots=True)
class Permit:
    """One numbered permit of the pool: a Lease, held by at most one node."""

    kind: PermitKind
    index: int
    holder: str  # "<node name>/<node UID>", empty when free
    former: bool = False  # ours, and taken by a Node object of our name that is gone
    early: bool = False  # it was taken before the pool was read, and not confirmed since
    stale: bool = False  # ours, and to be confirmed before anything else is written
    abandoned: bool = False  # another's who is gone: it may be taken over
    hidden: bool = False  # its Lease lacks its labels: it counts as held, and nobody can take it
    inherited: bool = (
        False  # ours or hidden, from an earlier life, which may have asked for something just before this one began
    )
    found: bool = False  # ours, and taken by an earlier life
    taken_s: int = 0  # seconds since it was last taken; of ours for people only, for it may be by the wall clock
    had_s: int = 0  # ours: seconds for which this life has had it
    unchanged_s: int = 0  # seconds since its Lease was last seen to change
    last: str = ""  # who gave it back last
    silent_s: int = 0  # for how long at least nobody had written it, by the API server's clock

    @property
    def withdraws(self) -> bool:
        """Whether it counts as a node that is out of service."""
        return self.kind is PermitKind.WITHDRAWN and bool(self.holder) and not self.abandoned


@dataclass(frozen=True, slots=True)
class Offer:
    """What the Node and a DRA driver's ResourceSlices say of its GPUs."""

    due: str = ""  # why there should be some; empty: nobody says so
    withheld: Mapping[str, int] = field(default_factory=dict)  # resource → how many, where pods can have none of any
    refused: tuple[str, ...] = ()  # workloads whose pods its kubelet refuses, again and again
    trouble: str = ""  # why the ResourceSlices could not be read; a node whose kubelet offers GPUs needs none


@dataclass(frozen=True, slots=True)
class World:
    """The cluster as this node sees it, read once per round."""

    node: str
    uid: str
    managed: bool = True  # False: a person opted this node out
    taints: tuple[Taint, ...] = ()
    cordoned: bool = False
    cordon_reason: str = ""  # as Slinky is told it, which says whether the cordon is ours
    labels: Mapping[str, str] = field(default_factory=dict)
    conditions: Mapping[str, Condition] = field(default_factory=dict)
    dismissed: frozenset[str] = frozenset()  # fault ids that a person declared ended
    unread: int = 0  # how many words beside them are no fault's id, or one too many
    stored: str | None = None  # our annotation, as text; None before the first start on this node
    history: str | None = None  # the ledger's annotation, as text
    drill: str | None = None  # a drill's annotation, as text
    permits: tuple[Permit, ...] | None = None  # None: not asked, which allows nothing
    pending: bool = False  # what this life asked for under them in vain may still arrive, whatever became of them
    pool_size: int = 0
    out: frozenset[str] = frozenset()  # other nodes of the pool that are out of service and hold no withdrawn permit
    aged: bool = False  # the permits or the pool were read a while ago: no permit is taken on that
    clock_s: int = 0  # monotonic seconds of the node's boot; 0: not looked at closely
    paused: str = ""  # why all agents of the cluster are to pause
    pods: tuple[Pod, ...] | None = None
    blocked: Mapping[str, str] = field(default_factory=dict)  # pod → why a budget refused its last eviction
    denied: Mapping[str, str] = field(
        default_factory=dict
    )  # pod → why somebody else refused it, or that nobody answered
    refused: tuple[str, ...] = ()  # the pods of both; first the one that was asked longest ago
    jobs: tuple[Job, ...] | None = None  # None: not asked, which starts nothing
    untainted_s: int = 0  # for so many seconds our taint has been asked for in vain; 0: it was not
    returns: Mapping[str, int] = field(default_factory=dict)  # workload → how often it came back during the drain
    moved: tuple[tuple[Pod, Cause], ...] = ()  # the pods that left at this life's word since the withdrawal, in order
    announced: frozenset[str] = frozenset()  # Events that were sent
    posted: frozenset[str] = frozenset()  # what the webhook's receiver has taken of this life, by its ids
    unposted: str = ""  # why it did not take the last
    diagnosed: Diagnosed | None = None  # of this agent's own life
    offer: Offer = field(default_factory=Offer)
    devices: tuple[Published, ...] = ()  # of the node's own pools; with the preset dra only
    fences: tuple[Fence, ...] = ()  # ours on them
    unfenced: str = ""  # why none can be set
    unlisted: str = ""  # why it isn't known which stand; empty where it is, or none can

    @property
    def holder(self) -> str:
        return f"{self.node}/{self.uid}"

    @property
    def tainted(self) -> bool:
        """Whether the node bears our hard taint."""
        return any(taint.key == HARD_TAINT for taint in self.taints)

    @property
    def withdrawn(self) -> bool:
        """Whether the node bears a taint that takes a permit."""
        return any(taint.withdraws for taint in self.taints)

    @property
    def closed(self) -> bool:
        """Whether our hard taint keeps every new pod away, as it does where no single GPU is fenced."""
        return any(taint.key == HARD_TAINT and taint.effect != "PreferNoSchedule" for taint in self.taints)

    def held(self, kind: PermitKind) -> Permit | None:
        return next(
            (s for s in self.permits or () if s.kind is kind and s.holder == self.holder and not s.hidden), None
        )


@dataclass(frozen=True, slots=True, order=True)
class Claim:
    """Which life of the agent acts on the node: of two the greater, which began later."""

    term: int  # one more than that of the life before it
    life: str  # the UID of its pod; of one that was started by hand, BY_HAND and a word of its own

    @property
    def by_hand(self) -> bool:
        return self.life.startswith(BY_HAND)


BY_HAND = "by-hand-"


@dataclass(frozen=True, slots=True)
class Local:
    """What only this node's own agent knows."""

    gathered: bool = True  # the faults had time to gather
    up_s: int = 10**9  # seconds since the agent's start, or since its GPUs were last somebody else's
    stage_s: int = 10**9  # the same since this life first saw the last attempt, or the check, as far as it is now
    released: bool = False  # our own processes hold no GPU
    clients: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # GPU UUID → pid → its pod's UID
    holders: Mapping[str, frozenset[str] | None] | None = None  # pod → its GPUs by PodResources; None: not known
    reserved: tuple[str, ...] = ()  # Jobs that an earlier life had written down, and may have asked for just now
    drains: bool = False  # an earlier life had begun a drain, and may have asked for an eviction just now
    drained_under: int | None = None  # the number of its draining permit; None: not known
    opted_out_at: int = 0  # when this life last saw the node opted out, or could not know, monotonic seconds; 0: never
    aside_s: int = 0  # for how long the GPUs have been somebody else's; 0: they are not
    claim: Claim | None = None  # this life's; None: it makes none, and obeys none


Clients = Mapping[str, Mapping[str, str]]  # GPU UUID → pid → UID of its pod, empty where that isn't known
