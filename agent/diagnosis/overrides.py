"""The operator's other opinions on single rules, applied to what the rules found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from agent.config.limits import Limits, Override
from agent.diagnosis.history import History
from agent.model.fault import Fault, Finding, Severity

Labels = Mapping[str, str]


def settle(finding: Finding, history: History, limits: Limits, labels: Labels) -> Finding | None:
    """The finding as the operator wants it; None if its rule is disabled."""
    for override in _matching(finding, history, limits, labels):
        if override.disabled:
            return None
        finding = _with(override, finding)
        code = finding.rule.removeprefix("xid-")
        if override.count and code.isdigit():
            times = history.within(finding.pci, int(code), override.window_s)
            if times < override.count:
                finding = replace(finding, severity=Severity.NOTICE, clear_s=limits.notice_clear_s)
    return finding


def resettled(faults: Mapping[str, Fault], history: History, limits: Limits, labels: Labels) -> dict[str, Fault]:
    """Faults that were found before the node's labels, or this configuration, were known."""
    kept = {}
    for key, fault in faults.items():
        finding = fault.finding
        for override in _matching(finding, history, limits, labels):
            if override.disabled:
                break
            if finding.severity > Severity.NOTICE:
                finding = _with(override, finding)
        else:
            kept[key] = replace(fault, finding=finding)
    return kept


def _matching(finding: Finding, history: History, limits: Limits, labels: Labels) -> list[Override]:
    if not limits.overrides:
        return []
    reading = history.readings.get(finding.pci)
    model = str(reading.values.get("name") or "") if reading else ""
    return [o for o in limits.overrides if o.rule == finding.rule and in_scope(o, model, labels)]


def in_scope(override: Override, model: str, labels: Labels) -> bool:
    """Whether an override is meant for this GPU model on a node with these labels."""
    if override.gpu_model is not None and not fnmatchcase(model, override.gpu_model):
        return False
    key, _, value = (override.node_label or "").partition("=")
    return not key or labels.get(key) == value


def _with(override: Override, finding: Finding) -> Finding:
    severity = finding.severity if override.severity is None else Severity[override.severity.upper()]
    clear_s = finding.clear_s
    if override.clear_s is not None:
        clear_s = None if isinstance(override.clear_s, str) else override.clear_s
    return replace(
        finding,
        severity=severity,
        remedy=override.remedy or finding.remedy,
        confirm_s=finding.confirm_s if override.confirm_s is None else override.confirm_s,
        clear_s=clear_s,
    )
