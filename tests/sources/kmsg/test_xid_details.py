"""What an Xid's line says beyond its code, in the forms that drivers and people's logs have."""

from __future__ import annotations

from agent.model.observation import Value
from agent.sources.kmsg.lines import Facts
from agent.sources.kmsg.xid_details import details

ZEROS = "0x0, 0x0, 0x10000, 0x0, 0x0, 0x0, 0x0"
SAID: tuple[tuple[int, str, dict[str, Value]], ...] = (
    (
        74,
        f", pid='<unknown>', name=<unknown>, NVLink: fatal error detected on link 14({ZEROS})",
        {"link": 14, "registers": "0x0 0x0 0x10000 0x0 0x0 0x0 0x0"},
    ),
    (
        74,
        ", NVLink: fatal error detected on link 3 (0x00000000 0x0 0x0 0x0 0xF0 0x0 0x0)",
        {"link": 3, "registers": "0x00000000 0x0 0x0 0x0 0xf0 0x0 0x0"},
    ),
    (74, ", NVLink: fatal error detected on link 2(0x1, 0x2)", {"link": 2}),
    (74, ", gpu-health-agent/drill=0123", {}),
    (
        145,
        ", RLW_REMAP Fatal XC0 i0 Link 00 (0x00000004 0x00000040 0x00000000 0x00000000)",
        {"fatal": 1, "severity": "Fatal", "unit": "RLW_REMAP", "link": 0, "intrinfo": 4, "error_status": 0x40},
    ),
    (
        145,
        ", pid=7, name=ray::W, rlw_rxpipe Non-fatal XC 0 i 1 Link 13 (0x0409a0c2, 0x00000008)",
        {
            "fatal": 0,
            "severity": "Non-fatal",
            "unit": "RLW_RXPIPE",
            "injected": 1,
            "link": 13,
            "intrinfo": 0x0409A0C2,
            "error_status": 8,
        },
    ),
    (
        149,
        ", NETIR Fatal XC0 i0 Link -1 (0x000fe406 0x00000000)",
        {"fatal": 1, "severity": "Fatal", "unit": "NETIR", "intrinfo": 0xFE406, "error_status": 0},
    ),
    (
        149,
        ", pid=9, name=X Fatal XC0 i0, NETIR Link Fatal XC0",
        {"fatal": 1, "severity": "Link Fatal", "unit": "NETIR"},
    ),
    (
        13,
        ", pid=5, name=a b, Graphics SM Warp Exception on (GPC 1, TPC 3, SM 0): Out Of Range Address",
        {"place": "GPC 1, TPC 3", "sm": 0},
    ),
    (13, ", Graphics SM Global Exception on (GPC 6, CPC 2, TPC 0): Multiple Warp Errors", {"place": "GPC 6, TPC 0"}),
    (13, ", Graphics Exception: ESR 0x505730=0x1000e 0x505734=0x4", {}),
    (
        31,
        ", Ch 00000016, intr 10000000. MMU Fault: ENGINE GRAPHICS GPC3 GPCCLIENT_T1_4 faulted @ 0x7f5d_2c000000. "
        "Fault is of type FAULT_PDE ACCESS_TYPE_VIRT_READ",
        {
            "engine": "GRAPHICS GPC3 GPCCLIENT_T1_4",
            "access": "FAULT_PDE ACCESS_TYPE_VIRT_READ",
            "place": "GRAPHICS GPC3 GPCCLIENT_T1_4",
        },
    ),
    (
        31,
        ", Ch 8. MMU Fault: ENGINE CE2 HUBCLIENT_CE0 faulted @ 0x0. Fault is of type FAULT_PTE",
        {"engine": "CE2 HUBCLIENT_CE0", "access": "FAULT_PTE"},
    ),
)


def test_each_form_says_what_is_judged_and_no_more() -> None:
    for code, rest, wanted in SAID:
        found = {name: value for name, value in details("", rest, code).items() if name not in ("pid", "name")}
        assert found == wanted, rest


def test_a_process_that_is_named_like_details_hides_none() -> None:
    """Its name comes before what the driver says."""
    told = details("", ", pid=1, name=(GPC 7, TPC 7), Graphics SM Warp Exception on (GPC 1, TPC 2, SM 0): x", 13)
    assert told["place"] == "GPC 1, TPC 2"
    told = details("", f", pid=1, name=link 9, NVLink: fatal error detected on link 14({ZEROS})", 74)
    assert told["link"] == 14
    told = details("", ", pid=1, name=U Fatal XC0 i0, RLW_CTRL Nonfatal XC0 i0 Link 02 (0x3 0x80000000)", 145)
    assert (told["fatal"], told["unit"]) == (0, "RLW_CTRL")


def test_what_comes_of_a_whole_line_is_the_same() -> None:
    line = f"NVRM: Xid (PCI:0000:1b:00): 74, pid=1, name=x, NVLink: fatal error detected on link 4({ZEROS})"
    ((_, pci, code, values),) = Facts().of(line)
    assert (pci, code, values["link"], values["pid"]) == ("0000:1b:00.0", 74, 4, 1)
