"""A remedy's Job: a copy of a suspended CronJob's template, pinned to this node. Only the GPUs' UUIDs vary."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from agent.actions.api import Api, ask
from agent.actions.job_pods import JobPod
from agent.actions.leases import Clock
from agent.actions.rights import OURS
from agent.config.settings import Config
from agent.model.errors import RefusedError
from agent.model.names import GPUS_ANNOTATION, NODE_UID_LABEL, TEMPLATE_LABEL
from agent.model.steps import StartJob
from agent.model.world import Job

_KEPT_S = 7 * 86400
_UNSEEN = "no pod of it was seen"


class Jobs:
    """The Jobs that repair this node, as last read."""

    def __init__(self, api: Api, node: str, config: Config, clock: Clock) -> None:
        self._api, self._node, self._repair, self._clock = api, node, config.repair, clock
        self._ended: dict[str, float] = {}  # when each was first seen to have ended
        self._listed: dict[str, str] = {}  # by the UID of the Node that each is of
        self._unbegun: dict[str, str] = {}  # why each had not begun when its pod was last seen; empty: it had
        namespace = quote(config.budget.namespace, safe="")
        self._path = f"/apis/batch/v1/namespaces/{namespace}"

    @property
    def configured(self) -> bool:
        return bool(self._repair.templates or self._repair.request_replacement)

    def look(self, uid: str, pods: Mapping[str, JobPod]) -> tuple[Job, ...]:
        """Every Job ever made for the Node with this UID. RefusedError, UnreachableError.

        With those that somebody removed before they began, as this life saw: else they would count as tried. And with
        those that go on all the same: else another one would begin beside them.
        """
        if not self._repair.templates:
            return ()
        path = f"{self._path}/jobs?labelSelector={quote(f'{NODE_UID_LABEL}={uid}')}"
        jobs = tuple(self._job(item, pods) for item in ask(self._api, "GET", path)["items"])
        there = {job.name for job in jobs}
        self._listed |= dict.fromkeys(there, uid)
        gone = (name for name, of in self._listed.items() if of == uid and name not in there)
        return (*jobs, *(job for name in gone if (job := self._removed(name, pods.get(name)))))

    def _removed(self, name: str, pod: JobPod | None) -> Job | None:
        """One whose pod has not ended, or that never began; None if it may have done something, and does no more."""
        why, goes_on = self._unbegun.get(name, ""), pod is not None and not pod.over
        if why and pod:
            why = self._unbegun[name] = pod.unbegun
        unbegun = f"{why}; it was removed" if why else ""
        state = "active" if goes_on else "failed"
        return Job(name, state, unbegun=unbegun, stuck=bool(pod and pod.stuck)) if goes_on or why else None

    def start(self, step: StartJob, uid: str) -> None:
        """Create it; one that is there already was created by us before a crash."""
        template = quote(self._repair.templates[step.remedy], safe="")
        cron_job = ask(self._api, "GET", f"{self._path}/cronjobs/{template}")
        body = self._body(step, uid, cron_job)
        self._unbegun.setdefault(step.name, _UNSEEN)
        try:
            ask(self._api, "POST", f"{self._path}/jobs", body)
        except RefusedError as refused:
            if refused.status != HTTPStatus.CONFLICT:
                raise
            del self._unbegun[step.name]

    def _body(self, step: StartJob, uid: str, cron_job: Mapping[str, Any]) -> dict[str, Any]:
        template = copy.deepcopy(cron_job["spec"]["jobTemplate"])
        metadata, spec = template.get("metadata") or {}, template["spec"]
        of = {TEMPLATE_LABEL: cron_job["metadata"]["name"], NODE_UID_LABEL: uid}
        labels = {**(metadata.get("labels") or {}), **OURS, **of}
        # That it ran must not be forgotten before it was read, by an agent that may be down for a while.
        spec["ttlSecondsAfterFinished"] = max(spec.get("ttlSecondsAfterFinished") or 0, _KEPT_S)
        most_s = self._repair.collect_s if step.remedy == "collect" else self._repair.deadline_s
        limit_s = max(1, int(min(spec.get("activeDeadlineSeconds") or most_s, most_s)))
        spec |= {"backoffLimit": 0, "activeDeadlineSeconds": limit_s, "parallelism": 1, "completions": 1}
        pod = spec["template"]
        pod["metadata"] = pod.get("metadata") or {}
        pod["metadata"]["labels"] = {**(pod["metadata"].get("labels") or {}), NODE_UID_LABEL: uid}
        pod["metadata"]["annotations"] = {
            **(pod["metadata"].get("annotations") or {}),
            GPUS_ANNOTATION: ",".join(step.uuids),
        }
        pod["spec"] |= {"nodeName": self._node, "restartPolicy": "Never"}
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": step.name, "labels": labels, "annotations": metadata.get("annotations") or {}},
            "spec": spec,
        }

    def _job(self, item: Mapping[str, Any], pods: Mapping[str, JobPod]) -> Job:
        name, why, state = item["metadata"]["name"], "", "active"
        for condition in (item.get("status") or {}).get("conditions") or ():
            if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
                state = "succeeded" if condition["type"] == "Complete" else "failed"
                why = str(condition.get("message") or condition.get("reason") or "")
        # By our own clock: the cluster's own time for it may be minutes ahead or behind.
        now = self._clock()
        ended_s = 0 if state == "active" else int(now - self._ended.setdefault(item["metadata"]["uid"], now))
        pod = pods.get(name)
        if self._unbegun.get(name) != "" and (pod or state == "active"):
            self._unbegun[name] = pod.unbegun if pod else _UNSEEN
        unbegun = self._unbegun.get(name, "")  # the pod of one that lasted too long is gone
        pod = pod or JobPod()
        return Job(name, state, pod.exit_code, why, ended_s, pod.ended_at, unbegun, pod.stuck)
