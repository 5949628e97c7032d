"""The command line as a person meets it: one clear sentence and the right exit code for what is wrong."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent.cli import COMMANDS, main, parser
from agent.config.limits import Limits
from tests.loopback import Loopback, answer, answers, kubeconfig

ROOT = Path(__file__).parents[2]


def program(*arguments: str, timeout_s: float = 20) -> tuple[int, str, str]:
    """The program as a process of its own: exit code, standard output, standard error."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("NODE_NAME", "KUBECONFIG")}
    done = subprocess.run(
        [sys.executable, "-m", "agent", *arguments], capture_output=True, text=True, timeout=timeout_s, env=inherited
    )
    return done.returncode, done.stdout, done.stderr


def cli(*arguments: str) -> tuple[int, str, str]:
    """The same within this process, for what starts nothing."""
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        try:
            code = main(arguments)
        except SystemExit as end:
            code = int(str(end.code))
    return code, out.getvalue(), said.getvalue()


def test_the_exit_code_is_the_process_own() -> None:
    code, _, said = program("run")
    assert (code, "node: not named" in said) == (78, True)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("mode: evic", "mode: must be 'observe', 'taint' or 'evict', not 'evic'"),
        ("pol_s: 5", "pol_s: no such setting; did you mean poll_s?"),
        ("budget: {max_withdrawn: 200%}", "budget.max_withdrawn: write a number of nodes, as 5, or a"),
        ("budget: {max_withdrawn: yes}", "budget.max_withdrawn: write a value: YAML reads yes"),
        ("budget: {per_hour: on}", "budget.per_hour: write a value: YAML reads yes"),
        (f"budget: {{max_withdrawn: 1{'0' * 400}}}", "budget.max_withdrawn: must be less than or equal to"),
        ("budget: {pool_selector: 0%}", "budget.pool_selector: write a label selector, as "),
        ("budget: {pool_selector: 'a=b c'}", "budget.pool_selector: write a label selector, as "),
        ("budget: {namespace: ''}", "budget.namespace: write a namespace's name: "),
        ("budget: {max_withdrawn: 1}\nbudget: {per_hour: 2}", "budget stands twice in one mapping, again in line 2"),
        ("budget: {others_taints: [a=b:NoSchedule]}", "budget.others_taints.0: write a taint's key, as "),
        ("drain: {exclude_namespaces: [kube-*]}", "drain.exclude_namespaces.0: write a namespace's name"),
        ("drain: {resource_prefixes: ['']}", "drain.resource_prefixes.0: write how a resource's name"),
        ("http: {address: a b}", "http.address: write an IP address or a host's name"),
        ("http: {address: 192.0.2.1}", "http.address, http.port: can't listen on 192.0.2.1:9836"),
        ("policy: {temperature_hysteresis_c: .inf}", "temperature_hysteresis_c: must be a finite number"),
        ('sources: {kmsg: {path: "a\\0b"}}', "sources.kmsg.path: write it in printable characters"),
        ("http: {port: 99999}", "http.port: must be less than or equal to 65535, not 99999"),
        ("policy: {temprature_confirm_s: 3}", "did you mean temperature_confirm_s?"),
        (
            "policy: {overrides: [{rule: temperatur, disabled: true}]}",
            "no rule 'temperatur'; did you mean temperature?",
        ),
        ("policy: {overrides: [{rule: xid-63, severty: notice}]}", "no such setting; did you mean severity?"),
        ("policy: {overrides: [{rule: gpu-lost, count: 3}]}", "policy.overrides.0.count: only Xids are counted"),
        ("policy: {overrides: [{rule: xid-154, severity: notice}]}", "judged as recovery-action: override that"),
        ("policy: {overrides: [{rule: xid-63, severity: bad}]}", "policy.overrides.0.severity: must be"),
        ("gate: {enabled: true}", "gate: mode observe takes no taint off: set mode to taint or evict"),
        ("presets: [webhook]", "presets: webhook has nobody to tell: set webhook.url as well"),
        ("presets: [none]", "presets.0: must be 'cluster-autoscaler', 'eks', "),
        ("presets: [eks]", "presets: eks is a way to ask for a replacement: set repair."),
        (
            "sources: {nvml: {enabled: false}, kmsg: {enabled: false}, dcgm: {enabled: false}}",
            "sources: none is enabled, so nothing would be seen: set one of sources.nvml.enabled, ",
        ),
        ("gate: {enabled: maybe}", "gate.enabled: write true or false, not 'maybe'"),
        ("drain: {exclude_namespaces: a}", "drain.exclude_namespaces: write a list, as [value], not 'a'"),
        ("drain: {deadline_s: 300}", "drain.deadline_s: write a mapping of its settings, as {name: value}, not 300"),
        ("webhook: {url: example.com}", "webhook.url: write a URL, as https://example.com/replace, not 'example.com'"),
        ("policy: {overrides: [{disabled: true}]}", "policy.overrides.0.rule: must be given\n"),
        ("policy: {overrides: [{rul: xid-63}]}", "policy.overrides.0.rul: no such setting; did you mean rule?"),
        ("- a", "must hold a mapping"),
        ("mode: " + "[" * 3000, "is nested too deeply"),
        ("poll_s: 5\nmode: [", "is not valid YAML: line 2: expected the node content, but found '<stream end>'"),
        ("mode: 2001-99-99", "is not valid YAML: month must be in 1..12"),
    ],
)
def test_a_wrong_setting_is_named_with_its_fix(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    code, _, said = cli("run", "--config", str(path), "--node", "n")
    assert code == 78
    assert sentence in said
    assert len(said.splitlines()) == 1


def test_a_bug_ends_with_its_traceback_and_never_looks_like_a_wrong_argument() -> None:
    for bug in ("ValueError", "FileNotFoundError", "ConnectionResetError"):
        program = f"""
import sys, types
from agent import cli

def run(arguments):
    raise {bug}("not what was typed")

command = types.ModuleType("agent.commands.odd")
command.run, command.add_arguments, command.EXAMPLES = run, lambda parser: None, (("odd", "why"),)
sys.modules[command.__name__], cli.COMMANDS["odd"] = command, "a command with a bug"
sys.exit(cli.main(["odd"]))
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("Traceback")
        assert done.stderr.endswith(f"{bug}: not what was typed\n")


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (("run",), 78, "node: not named"),
        (("run", "--config", "/none", "--node", "n"), 78, "/none: can't be read"),
        (("run", "--node", "n", "--simulate", "nonesuch"), 64, "one of demo, idle"),
        (("simulate", "nonesuch"), 64, "one of demo, idle"),
        (("simulate", "demo", "--kubeconfig", "/none"), 64, "--kubeconfig and --node go together"),
        (("simulate", "demo", "--kubeconfig", "/none", "--node", "n"), 78, "/none is not a file"),
        (("inject", "--gpu", "3"), 64, "one of the arguments"),
        (("inject", "--xid", "79"), 64, "--gpu: name the GPU's index"),
        (("inject", "--gpu", "x", "--xid", "79"), 64, "--gpu: 'x' is no GPU: name its index, as 3, or its UUID"),
        (("inject", "--gpu", "3", "--xid", "79", "--simulation-dir", "/none"), 1, "no simulation runs in /none"),
        (("replay", "/none"), 64, "/none: no such file"),
        (("replay", "-", "--profile", "b300"), 64, "--profile: 'b300' is none of h100-8"),
        (("explain", "--recording", "/none"), 64, "/none: can't be read (No such file or directory)"),
        (("explain", "--recording", "/"), 64, "/: can't be read (Is a directory)"),
        (("explain", "--node", "n", "--kubeconfig", "/none"), 78, "/none is not a file"),
        (("release", "--all", "--kubeconfig", "/none"), 78, "/none is not a file"),
        (("drill", "--kubeconfig", "/none"), 78, "/none is not a file"),
        (("policy", "--config", "/none"), 78, "/none: can't be read"),
        (("check", "--config", "/none"), 78, "/none: can't be read"),
        (("diagnose", "--level", "1", "--config", "/none"), 78, "/none: can't be read"),
        (("sources", "--socket", "/none/s", "--simulate", "nonesuch"), 64, "one of demo, idle"),
        (("simulate", "idle", "--simulation-dir", "/dev/null/d"), 64, "--simulation-dir: /dev/null/d can't be made"),
        (("run", "--log-level", "loud"), 64, "argument --log-level: invalid choice"),
        (("sources", "--socket", "s", "--log-format", "xml"), 64, "argument --log-format: invalid choice"),
        (("dance",), 64, "invalid choice"),
        ((), 64, "required"),
    ],
)
def test_wrong_arguments_end_with_a_sentence(arguments: tuple[str, ...], code: int, sentence: str) -> None:
    got, _, said = cli(*arguments)
    assert (got, sentence in said) == (code, True), said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "content", "sentence"),
    [
        (("simulate",), b"\xff", "not valid YAML"),
        (("simulate",), b"profile: b300", "profile: 'b300' is none of"),
        (("replay",), b'{"recording": 2}', "line 1: not the head of a recording (another version (2))"),
        (("replay",), b'{"at": "today"}', "line 1: at must be a time of RFC 3339, not 'today'"),
        (("explain", "--recording"), b"\xff", "line 1: not the head of a recording"),
        (("explain", "--recording"), b'{"recording": 1, "config": {}, "sources": []}', "ends before its first round"),
    ],
)
def test_a_wrong_file_is_a_wrong_argument(
    tmp_path: Path, arguments: tuple[str, ...], content: bytes, sentence: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    code, _, said = cli(*arguments, str(path))
    assert (code, sentence in said, len(said.splitlines())) == (64, True, 1), said


@pytest.mark.parametrize(
    ("user", "cluster", "sentence"),
    [
        ("{token: t}", "{server: 'https://127.0.0.1:1', certificate-authority-data: x}", "no credentials from"),
        ('{token: "secret\\nsecret"}', "{server: 'http://127.0.0.1:1'}", "127.0.0.1:1 must be one line of ASCII"),
        ("[", "]", "no credentials from"),
        ("2001-99-99", "", "no credentials from"),
    ],
)
def test_a_kubeconfig_that_is_none_ends_with_a_sentence_and_tells_no_secret(
    tmp_path: Path, user: str, cluster: str, sentence: str
) -> None:
    path = tmp_path / "kubeconfig"
    path.write_text(f"""
current-context: c
contexts: [{{name: c, context: {{cluster: k, user: u}}}}]
clusters: [{{name: k, cluster: {cluster}}}]
users: [{{name: u, user: {user}}}]
""")
    code, _, said = cli("release", "--all", "--kubeconfig", str(path))
    assert (code, sentence in said, len(said.splitlines())) == (78, True, 1), said
    assert "secret" not in said


def test_check_without_a_driver_cannot_tell(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"sources: {{kmsg: {{path: {tmp_path}/none}}}}\nhttp: {{address: 127.0.0.1, port: 1}}")
    code, out, _ = program("check", "--json", "--config", str(config))
    state = json.loads(out)
    assert any("kmsg" in why for why in state["blind"])
    assert (code, state["status"]) == (3, "unknown")
    code, out, _ = program("check", "--config", str(config))
    assert out.startswith("unknown: ")


def test_a_story_that_goes_wrong_ends_with_one(tmp_path: Path) -> None:
    path = tmp_path / "story.yaml"
    path.write_text("profile: h100-8\nduration_s: 3\nexpect: {faults: [xid-79]}\n")
    code, out, _ = program("simulate", str(path), "--json", "--simulation-dir", str(tmp_path / "sim"))
    told = [json.loads(line) for line in out.splitlines()]
    assert (code, told[-1]["text"]) == (1, "WRONG: fault xid-79 was not found")


def test_the_main_job_on_simulated_gpus_goes_as_it_should(tmp_path: Path) -> None:
    path = tmp_path / "story.yaml"
    path.write_text("""
profile: h100-8
duration_s: 14
steps:
  - {at_s: 1, gpu: 2, xid: 31, pid: 4711, name: python}
  - {at_s: 1.5, gpu: 3, lost: true}
  - {at_s: 6, gpu: 3, clear: true}
expect:
  faults: [xid-31, gpu-lost]
  steps: {taint: 1, evict: 3, untaint: 1}
  status: healthy
""")
    code, out, said = program("simulate", str(path), "--simulation-dir", str(tmp_path / "sim"), timeout_s=40)
    assert code == 0, out + said
    assert not (tmp_path / "sim" / "kmsg").exists(), "an agent that is started afterwards would find the story's faults"


def test_the_policy_in_force_shows_overrides_in_their_scope(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "policy: {overrides: [{rule: xid-62, gpu_model: '*H100*', severity: notice, count: 3}, "
        "{rule: xid-74, node_label: a=b, disabled: true}, {rule: xid-63, clear_s: latched}]}"
    )
    code, out, _ = cli("policy", "--config", str(path), "--gpu-model", "NVIDIA H100 PCIe", "--json")
    rules = {entry["rule"]: entry for entry in map(json.loads, out.splitlines())}
    assert code == 0
    assert (rules["xid-62"]["severity"], rules["xid-62"]["count"], rules["xid-62"]["overridden"]) == ("notice", 3, True)
    assert (rules["xid-74"]["disabled"], rules["xid-63"]["clear_s"]) == (False, None)
    assert "disabled" in cli("policy", "--config", str(path), "--node-label", "a=b")[1]


def test_the_policy_of_one_rule_shows_what_details_make_of_it() -> None:
    code, out, _ = cli("policy", "xid-74")
    assert (code, out.count("\nxid-74, ")) == (0, 14)
    assert "xid-74, register 5, bits 20, 23, 26, 29" in out
    assert cli("policy", "xid-150")[1].count("\nxid-150, ") == 1
    assert "\nrule " not in cli("policy", "xid-79")[1]
    for wrong in ("xid-7a", "xid-079", "xid-"):
        code, _, said = cli("policy", wrong)
        assert (code, f"no rule '{wrong}'" in said) == (64, True)


def test_a_rules_page_says_when_it_begins_and_ends_whose_word_it_is_and_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "policy: {temperature_hysteresis_c: 7, degraded_effect: NoSchedule, "
        "overrides: [{rule: temperature, confirm_s: 42, clear_s: latched}]}"
    )
    code, out, _ = cli("policy", "temperature", "--config", str(path))
    assert code == 0
    assert out.splitlines() == [
        "temperature: degraded, remedy contact_support, by an override",
        "  what:      hotter than its slowdown limit",
        "  of:        a GPU, by nvml",
        "  readings:  temperature_c",
        "  begins:    when it has lasted 42 s",
        "  settings:  policy.temperature_confirm_s 60, policy.temperature_clear_s 600, "
        "policy.temperature_hysteresis_c 7",
        "  clears by: another card in the slot; or a person's dismissal: annotation "
        "gpu-health-agent/dismiss=temperature@ADDRESS on the node",
        "  by itself: observe: running pods stay",
        "  by itself: taint or evict: running pods stay, no new ones come",
        "  by hand:   look at the node's cooling: fans, air flow, inlet temperature, and whether its neighbours are "
        "hot too",
        "  override:  policy: {overrides: [{rule: temperature, severity: notice}]}; also gpu_model, node_label, "
        "disabled, remedy, count, window_s, confirm_s, clear_s",
    ]


def test_every_rule_has_a_page_and_so_has_a_code_that_no_table_lists() -> None:
    rules = [json.loads(line)["rule"] for line in cli("policy", "--json")[1].splitlines()]
    for rule in (*rules, "xid-999", "sxid-9", "dcgm-999"):
        code, out, _ = cli("policy", rule)
        assert (code, out.startswith(f"{rule}: ")) == (0, True)
        for row in ("what", "of", "begins", "clears by", "by itself", "by hand", "override"):
            assert f"\n  {row}:" in out, (rule, row)


def test_every_threshold_is_named_on_the_page_of_a_rule() -> None:
    named = {name for line in cli("policy", "--json")[1].splitlines() for name in json.loads(line)["settings"]}
    of_no_rule = {"overrides", "degraded_effect", "soak_s", "aside_s"}
    assert set(Limits.model_fields) - of_no_rule == named


def test_rules_of_one_severity_are_listed_alone() -> None:
    fatal = [json.loads(line) for line in cli("policy", "--severity", "fatal", "--json")[1].splitlines()]
    assert {entry["severity"] for entry in fatal} == {"fatal"}
    assert "xid-79" in {entry["rule"] for entry in fatal}
    assert "\ntemperature " not in cli("policy", "--severity", "fatal")[1]
    code, _, said = cli("policy", "--severity", "bad")
    assert (code, "--severity: invalid choice" in said) == (64, True)


def _options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _options(below)
        else:
            yield action


def test_every_argument_of_every_command_is_explained_in_its_help() -> None:
    assert not [action.option_strings for action in _options(parser([*COMMANDS])) if not action.help]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_help_ends_with_examples_that_are_commands(command: str) -> None:
    code, out, _ = cli(*filter(None, (command, "--help")))
    _, found, examples = out.partition("\nexamples:\n")
    assert (code, found != "") == (0, True)
    for line in examples.splitlines():
        typed, _, why = line.strip().rpartition("  ")
        program, *arguments = shlex.split(typed.rpartition("|")[2])
        assert (program, bool(why)) == ("gpu-health-agent", True)
        if arguments[0] != "COMMAND":
            assert parser(arguments).parse_args(arguments).command == (command or arguments[0])


def test_the_shell_completes_commands_options_and_rules_by_the_line_in_the_readme() -> None:
    (line,) = re.findall(r"`(eval [^`]*)`", (ROOT / "README.md").read_text())
    typed = ("gpu-health-agent pol", "gpu-health-agent policy --sev", "gpu-health-agent policy sxid-1200")
    asked = "".join(
        f"""
        COMP_WORDS=({one}) COMP_CWORD={len(one.split()) - 1} COMP_LINE='{one}' COMP_POINT={len(one)} COMPREPLY=()
        _python_argcomplete gpu-health-agent {one.split()[-1]} {one.split()[-2]}
        echo "${{COMPREPLY[@]}}"
        """
        for one in typed
    )
    there = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    script = ["bash", "--norc", "-c", f"{line}\n{asked}"]
    done = subprocess.run(script, capture_output=True, text=True, timeout=30, env={**os.environ, **there})
    assert done.stdout.splitlines()[:2] == ["policy ", "--severity "], done.stderr
    assert "sxid-12001" in done.stdout.splitlines()[2].split()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [(("--sel",), {"--selector"}), (("-o", ""), {"wide", "json", "html"}), (("n",), {"n1", "n2"}), (("x",), set())],
)
def test_kubectl_completes_the_plugins_options_and_nodes(
    typed: tuple[str, ...], offered: set[str], tmp_path: Path
) -> None:
    named = [{"name": "Name"}, {"name": "Status"}]
    rows = [{"cells": ["n1", "Ready"]}, {"cells": ["n2", "Ready"]}]
    with Loopback(answers(answer({"kind": "Table", "columnDefinitions": named, "rows": rows}))) as server:
        asked = [sys.executable, "-c", "from agent.cli import plugin_completion; plugin_completion()", *typed]
        there = {**os.environ, "KUBECONFIG": kubeconfig(tmp_path, server.url)}
        done = subprocess.run(asked, capture_output=True, text=True, timeout=30, env=there)
    assert ({*done.stdout.split()}, done.stderr) == ({*offered, ":4"}, "")


def test_explain_without_an_agent_says_what_else_to_ask(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("http: {address: 127.0.0.1, port: 1}")
    code, _, said = cli("explain", "--config", str(config))
    assert (code, "name a node with --node" in said) == (1, True)


def test_an_agent_whose_sources_are_in_another_container_loads_no_nvml_binding(tmp_path: Path) -> None:
    """Its 2 MiB would be all its own: no other process of that container has it."""
    config = tmp_path / "config.yaml"
    config.write_text("http: {address: 127.0.0.1, port: 0}\n")
    begun = ["run", "--node", "n", "--config", str(config), "--sources", str(tmp_path / "none"), "--kubeconfig", "none"]
    script = f"""
import os, signal, sys, threading, time
from agent.cli import COMMANDS, main, parser
from agent.config.limits import Limits
def end():
    while signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        time.sleep(0.1)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=end).start()
code = main({begun!r})
sys.exit(f"loaded: {{'pynvml' in sys.modules}}, ended: {{code}}")
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "loaded: False, ended: 0" in ended.stderr, ended.stderr
