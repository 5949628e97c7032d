"""Prints where the bindings on PYTHONPATH expect each field, as C macros for the stand-in library."""

import ctypes
from typing import Any

import dcgm_fields
import dcgm_structs as s


def offset(kind: type, *names: str) -> int:
    """Where a field of a field lies."""
    at = 0
    for name in names:
        assert issubclass(kind, ctypes.Structure)
        at += getattr(kind, name).offset
        kind = {field[0]: field[1] for field in kind._fields_}[name]
    return at


def latest(prefix: str) -> type:
    """The structure's newest version."""
    names = [name for name in dir(s) if name.startswith(prefix) and name[len(prefix) :].isdecimal()]
    found: type = getattr(s, max(names, key=lambda name: int(name[len(prefix) :])))
    return found


attributes = s.c_dcgmDeviceAttributes_v3
health, incident = latest("c_dcgmHealthResponse_v"), s.c_dcgmIncidentInfo_t
mig, entity = s.c_dcgmMigHierarchy_v2, s.c_dcgmMigHierarchyInfo_v2
one, two = s.c_dcgmFieldValue_v1, s.c_dcgmFieldValue_v2
run, diagnosis = latest("c_dcgmRunDiag_v"), latest("c_dcgmDiagResponse_v")
macros = {
    "ATTRIBUTES_VERSION": s.dcgmDeviceAttributes_version3,
    "ATTRIBUTES_PCI": offset(attributes, "identifiers", "pciBusId"),
    "ATTRIBUTES_UUID": offset(attributes, "identifiers", "uuid"),
    "CONNECT_VERSION": s.c_dcgmConnectV3Params_version
    if hasattr(s, "c_dcgmConnectV3Params_version")
    else s.c_dcgmConnectV2Params_version,
    "HEALTH_VERSION": getattr(s, health.__name__.replace("c_", "").replace("_v", "_version")),
    "HEALTH_SIZE": ctypes.sizeof(health),
    "HEALTH_LIST": offset(health, "incidents"),
    "HEALTH_SET_INTERVAL": offset(s.c_dcgmHealthSetParams_v2, "updateInterval"),
    "INCIDENT_SIZE": ctypes.sizeof(incident),
    "INCIDENT_CODE": offset(incident, "error", "code"),
    "INCIDENT_ENTITY": offset(incident, "entityInfo"),
    "MIG_LIST": offset(mig, "entityList"),
    "MIG_SIZE": ctypes.sizeof(entity),
    "MIG_ENTITY": offset(entity, "entity"),
    "MIG_PARENT": offset(entity, "parent"),
    "MIG_INSTANCE": offset(entity, "info", "nvmlInstanceId"),
    "FIELD_META_SIZE": ctypes.sizeof(dcgm_fields.c_dcgm_field_meta_t),
    "VALUE1_SIZE": ctypes.sizeof(one),
    "VALUE1_FIELD": offset(one, "fieldId"),
    "VALUE1_TYPE": offset(one, "fieldType"),
    "VALUE1_STATUS": offset(one, "status"),
    "VALUE1_TS": offset(one, "ts"),
    "VALUE1_VALUE": offset(one, "value"),
    "VALUE2_SIZE": ctypes.sizeof(two),
    "VALUE2_GROUP": offset(two, "entityGroupId"),
    "VALUE2_ENTITY": offset(two, "entityId"),
    "VALUE2_FIELD": offset(two, "fieldId"),
    "VALUE2_TYPE": offset(two, "fieldType"),
    "VALUE2_STATUS": offset(two, "status"),
    "VALUE2_TS": offset(two, "ts"),
    "VALUE2_VALUE": offset(two, "value"),
    "RUN_LEVEL": offset(run, "validate"),
    "RUN_GPUS": offset(run, "entityIds" if hasattr(run, "entityIds") else "gpuList"),
    "DIAG_VERSION": getattr(s, diagnosis.__name__.replace("c_", "").replace("_v", "_version")),
    "DIAG_SIZE": ctypes.sizeof(diagnosis),
    "DIAG_BY_GPU": int(hasattr(diagnosis, "perGpuResponses")),
}
if macros["DIAG_BY_GPU"]:
    fields: dict[str, dict[str, Any]] = {
        kind.__name__: dict(kind._fields_) for kind in vars(s).values() if hasattr(kind, "_fields_")
    }
    gpu = fields[diagnosis.__name__]["perGpuResponses"]._type_
    result = fields[gpu.__name__]["results"]._type_
    errors = fields[result.__name__]["error"]
    error = getattr(errors, "_type_", errors)  # one up to DCGM 3.2, a list of them from 3.3 on
    macros |= {
        "DIAG_LEVEL_ONE": offset(diagnosis, "levelOneResults"),
        "DIAG_GPUS": offset(diagnosis, "perGpuResponses"),
        "DIAG_GPU_SIZE": ctypes.sizeof(gpu),
        "DIAG_GPU_RESULTS": offset(gpu, "results"),
        "DIAG_GPU_TESTS": dict(gpu._fields_)["results"]._length_,
        "DIAG_RESULT_SIZE": ctypes.sizeof(result),
        "DIAG_RESULT_TEXT": result.error.offset,
        "DIAG_RESULT_CODE": result.error.offset + offset(error, "code"),
    }
else:
    test, error = s.c_dcgmDiagTestRun_v2, s.c_dcgmDiagError_v1
    macros |= {
        "DIAG_TEST_COUNT": offset(diagnosis, "numTests"),
        "DIAG_ERROR_COUNT": offset(diagnosis, "numErrors"),
        "DIAG_RESULT_COUNT": offset(diagnosis, "numResults"),
        "DIAG_TESTS": offset(diagnosis, "tests"),
        "TEST_SIZE": ctypes.sizeof(test),
        "TEST_RESULT": offset(test, "result"),
        "DIAG_RESULTS": offset(diagnosis, "results"),
        "DIAG_RESULT_SIZE": ctypes.sizeof(s.c_dcgmDiagEntityResult_v1),
        "DIAG_ERRORS": offset(diagnosis, "errors"),
        "DIAG_ERROR_SIZE": ctypes.sizeof(error),
        "DIAG_ERROR_TEXT": offset(error, "msg"),
        "DIAG_ERROR_TEST": offset(error, "testId"),
    }
for name, value in macros.items():
    print(f"#define {name} {value}")
