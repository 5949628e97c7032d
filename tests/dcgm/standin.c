/* A stand-in for libdcgm.so.4: it answers as the file $DCGM_STANDIN says and notes each call in that file's ".calls".
 *
 * The file is read anew at each call, so that a test changes the engine while the source runs. Its lines:
 *   gpu ID PCI UUID                     a GPU; "dropped ID": it is no longer among the supported ones
 *   mig ENTITY GPU INSTANCE             a GPU instance
 *   value GROUP ENTITY FIELD TYPE VALUE [STATUS [AGE_S]]   TYPE is i, d or s; FIELD 0 is every field
 *   skips                               as after Xid 119: every value is blank, with status 0, live ones too
 *   detached                            as after dcgmDetachDriver: no GPU is supported, what asks NVML fails with -56
 *   version TEXT                        the engine's own; the library's is "stand-in"
 *   switch ID                           an NVSwitch; its address is in values of fields 866 to 869
 *   xid GROUP ENTITY CODE TIMESTAMP_US  one value of field 230; each is told to a client once
 *   sxid ENTITY FIELD CODE TIMESTAMP_US one value of field 856 or 857 of a switch; TIMESTAMP_US 0: renewed at each look
 *   incident SYSTEM HEALTH CODE GROUP ENTITY TEXT
 *   health PATH                         the health check's answer as bytes, from behind its version on
 *   error CALL STATUS | hang CALL | slow CALL SECONDS | crash CALL       CALL may be "*"
 *   diag PATH                           a diagnosis' answer as bytes, from behind its version on
 *   test NAME RESULT GROUP ENTITY CODE SEVERITY TEXT       of a diagnosis; CODE 0: no error
 *   whole NAME RESULT                   of DCGM 4's: a test's own result, where it is worse than those of the GPUs
 * The layout of each structure comes from the bindings in use (layout.h), so that 3.x and 4.x ones are served alike.
 */
#include "layout.h"
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <unistd.h>

typedef void *handle_t;
typedef int (*entity_callback)(uint32_t, uint32_t, void *, int, void *);

enum { VERSION_MISMATCH = -12, BAD_PARAMETER = -1, NVML_NOT_LOADED = -56 };

static handle_t sxids; /* the group of the fields 856 and 857 */
static __thread char lines[512][768]; /* a diagnosis has its heartbeat in a thread of its own */
static __thread int count;

static void read_file(void)
{
    const char *path = getenv("DCGM_STANDIN");
    FILE *file = path ? fopen(path, "r") : NULL;
    count = 0;
    while (file && count < 512 && fgets(lines[count], sizeof lines[0], file)) {
        lines[count][strcspn(lines[count], "\n")] = 0;
        count++;
    }
    if (file)
        fclose(file);
}

static int64_t now_us(void)
{
    struct timeval now;
    gettimeofday(&now, NULL);
    return (int64_t)now.tv_sec * 1000000 + now.tv_usec;
}

static int named(const char *call, const char *name)
{
    return !strcmp(name, "*") || !strcmp(name, call);
}

/* Notes the call, and behaves as the file says; the status that it is to return. */
static int called(const char *call, const char *with)
{
    char path[512], name[128];
    int status = 0, hangs, number;
    float seconds;
    const char *file = getenv("DCGM_STANDIN");
    snprintf(path, sizeof path, "%s.calls", file ? file : "/dev/null");
    FILE *calls = fopen(path, "a");
    if (calls) {
        fprintf(calls, "%s %s\n", call, with);
        fclose(calls);
    }
    do {
        hangs = 0;
        read_file();
        for (int i = 0; i < count; i++)
            if (sscanf(lines[i], "hang %127s", name) == 1 && named(call, name))
                hangs = 1;
        if (hangs)
            usleep(20000);
    } while (hangs);
    for (int i = 0; i < count; i++) {
        if (sscanf(lines[i], "crash %127s", name) == 1 && named(call, name))
            abort();
        if (sscanf(lines[i], "slow %127s %f", name, &seconds) == 2 && named(call, name))
            usleep((useconds_t)(seconds * 1e6)); /* glibc's takes more than a second */
        if (sscanf(lines[i], "error %127s %d", name, &number) == 2 && named(call, name))
            status = number;
    }
    return status;
}

#define BEGIN(with)                                                                                                    \
    int status = called(__func__, with);                                                                               \
    if (status)                                                                                                        \
    return status

static int is(const char *state)
{
    for (int i = 0; i < count; i++)
        if (!strcmp(lines[i], state))
            return 1;
    return 0;
}

static void put32(void *at, size_t offset, uint32_t value)
{
    memcpy((char *)at + offset, &value, sizeof value);
}

static uint32_t get32(const void *at, size_t offset)
{
    uint32_t value;
    memcpy(&value, (const char *)at + offset, sizeof value);
    return value;
}

int dcgmInit(void) { BEGIN(""); return 0; }
int dcgmShutdown(void) { BEGIN(""); return 0; }
int dcgmStartEmbedded(int mode, handle_t *handle) { (void)mode; BEGIN(""); *handle = (handle_t)2; return 0; }
int dcgmStopEmbedded(handle_t handle) { (void)handle; BEGIN(""); return 0; }
int dcgmDisconnect(handle_t handle) { (void)handle; BEGIN(""); return 0; }

int dcgmConnect_v3(const char *address, void *parameters, handle_t *handle)
{
    BEGIN(address);
    if (get32(parameters, 0) != CONNECT_VERSION)
        return VERSION_MISMATCH;
    *handle = (handle_t)1;
    return 0;
}

int dcgmConnect_v2(const char *address, void *parameters, handle_t *handle)
{
    BEGIN(address);
    if (get32(parameters, 0) != CONNECT_VERSION)
        return VERSION_MISMATCH;
    *handle = (handle_t)1;
    return 0;
}

static int devices(uint32_t *ids, int *found, int all)
{
    unsigned id, other;
    *found = 0;
    for (int i = 0; i < count; i++) {
        int dropped = !all && is("detached");
        if (sscanf(lines[i], "gpu %u", &id) != 1)
            continue;
        for (int j = 0; j < count; j++)
            dropped |= sscanf(lines[j], "dropped %u", &other) == 1 && other == id;
        if (all || !dropped)
            ids[(*found)++] = id;
    }
    return 0;
}

int dcgmGetAllDevices(handle_t handle, uint32_t *ids, int *found)
{
    (void)handle;
    BEGIN("");
    return devices(ids, found, 1);
}

int dcgmGetAllSupportedDevices(handle_t handle, uint32_t *ids, int *found)
{
    (void)handle;
    BEGIN("");
    return devices(ids, found, 0);
}

int dcgmGetEntityGroupEntities(handle_t handle, int group, uint32_t *ids, int *found, int flags)
{
    unsigned id;
    (void)handle, (void)flags;
    BEGIN("");
    *found = 0;
    for (int i = 0; i < count; i++)
        if (group == 3 && sscanf(lines[i], "switch %u", &id) == 1)
            ids[(*found)++] = id;
    return 0;
}

int dcgmGetDeviceAttributes(handle_t handle, int gpu, void *attributes)
{
    unsigned id;
    char pci[64], uuid[64];
    (void)handle;
    BEGIN("");
    if (get32(attributes, 0) != ATTRIBUTES_VERSION)
        return VERSION_MISMATCH;
    for (int i = 0; i < count; i++)
        if (sscanf(lines[i], "gpu %u %63s %63s", &id, pci, uuid) == 3 && id == (unsigned)gpu) {
            strcpy((char *)attributes + ATTRIBUTES_PCI, pci);
            strcpy((char *)attributes + ATTRIBUTES_UUID, uuid);
            return 0;
        }
    return BAD_PARAMETER;
}

int dcgmGetGpuInstanceHierarchy(handle_t handle, void *hierarchy)
{
    unsigned entity, gpu, instance, found = 0;
    (void)handle;
    BEGIN("");
    if (is("detached"))
        return NVML_NOT_LOADED;
    for (int i = 0; i < count; i++)
        if (sscanf(lines[i], "mig %u %u %u", &entity, &gpu, &instance) == 3) {
            char *entry = (char *)hierarchy + MIG_LIST + found++ * MIG_SIZE;
            put32(entry, MIG_ENTITY, 4);
            put32(entry, MIG_ENTITY + 4, entity);
            put32(entry, MIG_PARENT, 1);
            put32(entry, MIG_PARENT + 4, gpu);
            put32(entry, MIG_INSTANCE, instance);
        }
    put32(hierarchy, 4, found);
    return 0;
}

int dcgmGroupCreate(handle_t handle, int kind, const char *name, handle_t *group)
{
    static uintptr_t made = 100;
    (void)handle, (void)kind;
    BEGIN(name);
    *group = (handle_t)made++;
    return 0;
}

int dcgmGroupDestroy(handle_t handle, handle_t group) { (void)handle, (void)group; BEGIN(""); return 0; }

int dcgmGroupAddEntity(handle_t handle, handle_t group, int entity_group, int entity)
{
    char with[64];
    (void)handle, (void)group;
    snprintf(with, sizeof with, "%d %d", entity_group, entity);
    BEGIN(with);
    return 0;
}

int dcgmFieldGroupCreate(handle_t handle, int number, uint16_t *fields, const char *name, handle_t *group)
{
    static uintptr_t made = 200;
    (void)handle, (void)number;
    BEGIN(name);
    *group = (handle_t)made++;
    if (fields[0] == 856)
        sxids = *group;
    return 0;
}

int dcgmWatchFields(handle_t handle, handle_t group, handle_t fields, int64_t every_us, double age_s, int samples)
{
    char with[64];
    (void)handle, (void)group, (void)fields;
    snprintf(with, sizeof with, "%ld %.0f %d", (long)every_us, age_s, samples);
    BEGIN(with);
    return 0;
}

int dcgmUpdateAllFields(handle_t handle, int wait) { (void)handle, (void)wait; BEGIN(""); return 0; }

int DcgmFieldsInit(void) { return 0; }

void *DcgmFieldGetById(int field)
{
    static char meta[FIELD_META_SIZE];
    const char *newest = getenv("DCGM_STANDIN_NEWEST_FIELD");
    return newest && field > atoi(newest) ? NULL : meta;
}

int dcgmErrorGetPriorityByCode(int code) /* of DCGM 4.6.0, for its health check's codes */
{
    switch (code) {
    case 5: case 10: case 11: case 12: case 16: case 123: case 131: return 1; /* MONITOR */
    case 3: case 4: case 7: case 8: case 13: case 15: case 52: case 70: case 71: case 81: case 109: case 118: case 119:
    case 120: case 121: case 122: case 126: case 301: return 2; /* ISOLATE; 301 is none of DCGM's */
    case 9: case 14: case 101: case 132: return 4; /* TRIAGE */
    case 29: case 46: case 55: return 5; /* CONFIG */
    case 6: case 80: case 83: case 84: case 85: case 125: case 127: case 128: return 6; /* RESET */
    default: return 3; /* UNKNOWN */
    }
}

int dcgmVersionInfo(void *info)
{
    BEGIN("");
    strcpy((char *)info + 4, "version:stand-in;arch:x86_64");
    return 0;
}

int dcgmHostengineVersionInfo(handle_t handle, void *info)
{
    char version[64] = "stand-in";
    (void)handle;
    BEGIN("");
    for (int i = 0; i < count; i++)
        sscanf(lines[i], "version %63s", version);
    sprintf((char *)info + 4, "arch:x86_64;version:%s", version);
    return 0;
}

static void put_value(char *value, int type, const char *text, int64_t timestamp, int status, size_t type_at,
                      size_t status_at, size_t timestamp_at, size_t value_at)
{
    uint16_t type_word = (uint16_t)type;
    memcpy(value + type_at, &type_word, sizeof type_word);
    put32(value, status_at, (uint32_t)status);
    memcpy(value + timestamp_at, &timestamp, sizeof timestamp);
    if (type == 'd') {
        double number = strtod(text, NULL);
        memcpy(value + value_at, &number, sizeof number);
    } else if (type == 's') {
        strncpy(value + value_at, text, 255);
    } else {
        int64_t number = strtoll(text, NULL, 0);
        memcpy(value + value_at, &number, sizeof number);
    }
}

int dcgmEntitiesGetLatestValues(handle_t handle, uint32_t *entities, unsigned entity_count, uint16_t *fields,
                                unsigned field_count, unsigned flags, char *values)
{
    char with[32];
    (void)handle;
    snprintf(with, sizeof with, "flags=%u", flags);
    BEGIN(with);
    if (flags && is("detached"))
        return NVML_NOT_LOADED;
    for (unsigned e = 0; e < entity_count; e++)
        for (unsigned f = 0; f < field_count; f++, values += VALUE2_SIZE) {
            unsigned group, entity, field;
            char type, text[256];
            put32(values, VALUE2_GROUP, entities[2 * e]);
            put32(values, VALUE2_ENTITY, entities[2 * e + 1]);
            memcpy(values + VALUE2_FIELD, &fields[f], sizeof fields[f]);
            put_value(values, 'i', "0x7ffffffffffffff2", now_us(), 0, VALUE2_TYPE, VALUE2_STATUS, VALUE2_TS,
                      VALUE2_VALUE);
            for (int i = 0; i < count; i++) {
                int one = 0, age_s = 0;
                if (sscanf(lines[i], "value %u %u %u %c %255s %d %d", &group, &entity, &field, &type, text, &one,
                           &age_s) >= 5 &&
                    group == entities[2 * e] && entity == entities[2 * e + 1] && (field == fields[f] || !field))
                    put_value(values, type, text, now_us() - age_s * (int64_t)1000000, one, VALUE2_TYPE, VALUE2_STATUS,
                              VALUE2_TS, VALUE2_VALUE);
            }
            if (is("skips"))
                put_value(values, 'i', "0x7ffffffffffffff0", now_us(), 0, VALUE2_TYPE, VALUE2_STATUS, VALUE2_TS,
                          VALUE2_VALUE);
        }
    return 0;
}

int dcgmGetValuesSince_v2(handle_t handle, handle_t group, handle_t fields, int64_t since, int64_t *next,
                          entity_callback callback, void *user)
{
    int64_t last = since;
    (void)handle, (void)group;
    BEGIN("");
    for (int i = 0; i < count; i++) {
        unsigned entity_group = 3, entity, code;
        long long at;
        char value[VALUE1_SIZE] = { 0 }, text[32];
        uint16_t field = 230;
        if (fields == sxids ? sscanf(lines[i], "sxid %u %hu %u %lld", &entity, &field, &code, &at) != 4
                            : sscanf(lines[i], "xid %u %u %u %lld", &entity_group, &entity, &code, &at) != 4)
            continue;
        at = at ? at : now_us();
        if (at < since)
            continue;
        snprintf(text, sizeof text, "%u", code);
        memcpy(value + VALUE1_FIELD, &field, sizeof field);
        put_value(value, 'i', text, at, 0, VALUE1_TYPE, VALUE1_STATUS, VALUE1_TS, VALUE1_VALUE);
        callback(entity_group, entity, value, 1, user);
        last = at + 1 > last ? at + 1 : last;
    }
    *next = last;
    return 0;
}

int dcgmHealthSet_v2(handle_t handle, void *parameters)
{
    char with[64];
    int64_t interval;
    (void)handle;
    memcpy(&interval, (char *)parameters + HEALTH_SET_INTERVAL, sizeof interval);
    snprintf(with, sizeof with, "%lld", (long long)interval);
    BEGIN(with);
    return 0;
}

#define NOT_RECORDED 1

/* An answer that is a file of bytes. */
static int as_recorded(const char *line, char *response, size_t size)
{
    char path[512];
    for (int i = 0; i < count; i++) {
        FILE *bytes = sscanf(lines[i], line, path) == 1 ? fopen(path, "rb") : NULL;
        if (bytes) {
            size_t read = fread(response + 4, 1, size - 4, bytes);
            fclose(bytes);
            return read ? 0 : BAD_PARAMETER;
        }
    }
    return NOT_RECORDED;
}

int dcgmHealthCheck(handle_t handle, handle_t group, char *response)
{
    unsigned system, health, code, entity_group, entity, found = 0, worst = 0;
    (void)handle, (void)group;
    BEGIN("");
    if (get32(response, 0) != HEALTH_VERSION)
        return VERSION_MISMATCH;
    int recorded = as_recorded("health %511s", response, HEALTH_SIZE);
    if (recorded != NOT_RECORDED)
        return recorded;
    for (int i = 0; i < count; i++) {
        int at = 0;
        if (sscanf(lines[i], "incident %x %u %u %u %u %n", &system, &health, &code, &entity_group, &entity, &at) < 5)
            continue;
        char *incident = response + HEALTH_LIST + found++ * INCIDENT_SIZE;
        put32(incident, 0, system);
        put32(incident, 4, health);
        strncpy(incident + 8, lines[i] + at, 1023);
        put32(incident, INCIDENT_CODE, code);
        put32(incident, INCIDENT_ENTITY, entity_group);
        put32(incident, INCIDENT_ENTITY + 4, entity);
        if (code != 120 && health > worst)
            worst = health;
    }
    put32(response, 4, worst);
    put32(response, 8, found);
    return 0;
}

int dcgmHostengineIsHealthy(handle_t handle, void *health) { (void)handle, (void)health; BEGIN(""); return 0; }

int dcgmPolicySet(void) { BEGIN(""); return 0; }
int dcgmPolicyRegister_v2(void) { BEGIN(""); return 0; }
int dcgmPolicyUnregister(void) { BEGIN(""); return 0; }

int dcgmDiagSendHeartbeat(handle_t handle) { (void)handle; BEGIN(""); return 0; }
int dcgmStopDiagnostic(handle_t handle) { (void)handle; BEGIN(""); return 0; }

/* Each "test" line as a result of its entity, with its error. */
static int diagnosis(char *response)
{
    unsigned result, group, entity, code, severity, tests = 0, results = 0, errors = 0;
    char name[32];
    if (get32(response, 0) != DIAG_VERSION)
        return VERSION_MISMATCH;
    int recorded = as_recorded("diag %511s", response, DIAG_SIZE);
    if (recorded != NOT_RECORDED)
        return recorded;
#if DIAG_BY_GPU
    for (int gpu = 0; gpu < 32; gpu++)
        for (int test = 0; test < DIAG_GPU_TESTS; test++)
            put32(response + DIAG_GPUS + gpu * DIAG_GPU_SIZE + DIAG_GPU_RESULTS + test * DIAG_RESULT_SIZE, 0, 4);
#endif
    for (int i = 0; i < count; i++) {
        int at = 0;
        if (sscanf(lines[i], "test %31s %u %u %u %u %u %n", name, &result, &group, &entity, &code, &severity, &at) < 6)
            continue;
#if DIAG_BY_GPU
        unsigned test = !strcmp(name, "memory") ? 0 : !strcmp(name, "diagnostic") ? 1 : !strcmp(name, "pcie") ? 2 : 3;
        char *one = test < 3 ? response + DIAG_GPUS + entity * DIAG_GPU_SIZE + DIAG_GPU_RESULTS + test * DIAG_RESULT_SIZE
                             : response + DIAG_LEVEL_ONE + tests++ * DIAG_RESULT_SIZE;
        put32(one, 0, result);
        strncpy(one + DIAG_RESULT_TEXT, lines[i] + at, 511);
        put32(one, DIAG_RESULT_CODE, code);
        if (test < 3) {
            put32(response, 4, entity + 1);
            put32(response + DIAG_GPUS + entity * DIAG_GPU_SIZE, 0, entity);
        }
        put32(response, 8, tests);
        (void)results, (void)errors;
#else
        unsigned test = 0;
        while (test < tests && strcmp(response + DIAG_TESTS + test * TEST_SIZE, name))
            test++;
        char *one = response + DIAG_TESTS + test * TEST_SIZE;
        if (test == tests) {
            tests++;
            strcpy(one, name);
        }
        if (result > get32(one, TEST_RESULT))
            put32(one, TEST_RESULT, result);
        char of[32];
        for (int j = 0; j < count; j++)
            if (sscanf(lines[j], "whole %31s %u", of, &result) == 2 && !strcmp(of, name))
                put32(one, TEST_RESULT, result);
        sscanf(lines[i], "test %31s %u", name, &result);
        char *entry = response + DIAG_RESULTS + results++ * DIAG_RESULT_SIZE;
        put32(entry, 0, group);
        put32(entry, 4, entity);
        put32(entry, 8, result);
        put32(entry, 12, test);
        if (code) {
            char *error = response + DIAG_ERRORS + errors++ * DIAG_ERROR_SIZE;
            put32(error, 0, group);
            put32(error, 4, entity);
            put32(error, 8, code);
            put32(error, 16, severity);
            strncpy(error + DIAG_ERROR_TEXT, lines[i] + at, 1023);
            put32(error, DIAG_ERROR_TEST, test);
        }
        response[DIAG_TEST_COUNT] = (char)tests;
        response[DIAG_ERROR_COUNT] = (char)errors;
        uint16_t number = (uint16_t)results;
        memcpy(response + DIAG_RESULT_COUNT, &number, sizeof number);
#endif
    }
    return 0;
}

int dcgmActionValidate_v2(handle_t handle, char *request, char *response)
{
    char with[300];
    (void)handle;
    snprintf(with, sizeof with, "level=%u gpus=%s", get32(request, RUN_LEVEL), request + RUN_GPUS);
    BEGIN(with);
    return diagnosis(response);
}
