"""The remedies: all that is known of each stands in its row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum


class Remedy(StrEnum):
    """The action words, from mildest to hardest."""

    NONE = "none"
    RESTART_WORKLOAD = "restart_workload"
    CONTACT_SUPPORT = "contact_support"
    RESET_GPU = "reset_gpu"
    REBOOT_NODE = "reboot_node"
    REPLACE_NODE = "replace_node"

    @property
    def row(self) -> Row:
        return ROWS[self]

    @property
    def rank(self) -> int:
        return self.row.rank


class Proof(Enum):
    """What proves a latched fault cured."""

    RESET = "a reset of its GPUs, or another boot"
    BOOT = "another boot"
    NOTHING = "nothing that the agent sees"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    rank: int  # of two the higher one is the harder
    whole_node: bool  # every pod of the node leaves for it, and not only those on its GPUs
    rung: int  # of the repair ladder, which is climbed when a milder one does not help; 0: the agent never makes it
    template: str  # the setting under repair that names its CronJob; empty: there is none
    deadline: str  # the setting under drain.deadline_s
    proof: Proof
    ends: str  # what that is in words; empty: nothing but another card or a person's dismissal ends such a fault
    to_do: (
        str  # what a person does, where the fault's rule knows nothing better; {target} says to nvidia-smi which GPUs
    )


ROWS: Mapping[Remedy, Row] = {
    Remedy.NONE: Row(
        rank=0,
        whole_node=False,
        rung=0,
        template="",
        deadline="contact_support",
        proof=Proof.BOOT,
        ends="a reboot",
        to_do="it asks for nothing by itself",
    ),
    Remedy.RESTART_WORKLOAD: Row(
        rank=1,
        whole_node=False,
        rung=0,
        template="",
        deadline="contact_support",
        proof=Proof.BOOT,
        ends="a reboot",
        to_do="look at the program that ran on the GPU; the GPU itself needs nothing",
    ),
    Remedy.CONTACT_SUPPORT: Row(
        rank=2,
        whole_node=False,
        rung=0,
        template="",
        deadline="contact_support",
        proof=Proof.NOTHING,
        ends="",
        to_do="run nvidia-bug-report.sh on the node and open a case with the hardware's vendor",
    ),
    Remedy.RESET_GPU: Row(
        rank=3,
        whole_node=False,
        rung=1,
        template="reset_gpu",
        deadline="reset_gpu",
        proof=Proof.RESET,
        ends="a GPU reset (by a Job of ours, or seen in all of its counters with persistence mode on), a reload of the "
        "driver or a reboot",
        to_do="when its pods have left, stop what else holds the GPU (device plugin, DCGM, persistence daemon) "
        "and run: nvidia-smi --gpu-reset{target}",
    ),
    Remedy.REBOOT_NODE: Row(
        rank=4,
        whole_node=True,
        rung=2,
        template="reboot_node",
        deadline="reboot_node",
        proof=Proof.BOOT,
        ends="a reboot (another boot id)",
        to_do="when its pods have left, reboot the node",
    ),
    Remedy.REPLACE_NODE: Row(
        rank=5,
        whole_node=True,
        rung=3,
        template="replace_node",
        deadline="replace_node",
        proof=Proof.NOTHING,
        ends="",
        to_do="have the card or the node replaced; a reset or reboot does not mend it",
    ),
}
LADDER = tuple(sorted((remedy for remedy, row in ROWS.items() if row.rung), key=lambda one: ROWS[one].rung))
