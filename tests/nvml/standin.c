/* A stand-in for libnvidia-ml.so.1: it answers as the file $NVML_STANDIN says, which may be swapped while a source runs.
 *
 * Its lines; a GPU is a number that its board keeps, "*" is every GPU and every call, and the last line that fits holds:
 *   gpu GPU                        a board is there; NVML's index is the line's place among these
 *   text CALL GPU TEXT             what a call writes as text, bytes as %XX
 *   numbers CALL GPU N ...         a call's results, in their order; the last stands for those that are left
 *   field ID GPU TYPE N            a field value: TYPE as NVML's, or "-" and an error code
 *   answer CALL GPU CODE           an error code
 *   slow CALL GPU MILLISECONDS | hang CALL GPU | crash CALL GPU SIGNAL
 *   event NUMBER GPU TYPE DATA     delivered once, where it is registered for; NUMBER counts from 1
 * What no line says is what a healthy H100 answers; texts are empty. Layouts are NVIDIA's, written down here for themselves: where the
 * binding's differ, values come out wrong. Which of these calls a driver lacks is decided by the linker.
 */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OK = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, TIMEOUT = 10, VERSION_MISMATCH = 25 };
enum { LINES = 512, GPUS = 64, NUMBERS = 64 };

typedef struct { int gpu; } *device_t;
typedef uint32_t u32;
typedef uint64_t u64;
typedef struct { char verb[12], call[64], gpu[8]; const char *rest; } line_t;
typedef struct { int code, count; u64 numbers[NUMBERS]; } said_t;

static char text_of_file[1 << 16];
static line_t lines[LINES];
static int line_count;
static struct stat read_at;

static void read_script(void)
{
    struct stat now;
    const char *path = getenv("NVML_STANDIN");
    if (!path || stat(path, &now))
        return;
    if (now.st_ino == read_at.st_ino && !memcmp(&now.st_mtim, &read_at.st_mtim, sizeof now.st_mtim))
        return;
    FILE *file = fopen(path, "r");
    if (!file)
        return;
    text_of_file[fread(text_of_file, 1, sizeof text_of_file - 1, file)] = 0;
    fclose(file);
    read_at = now;
    line_count = 0;
    for (char *at = text_of_file; at && *at && line_count < LINES;) {
        char *end = strchr(at, '\n');
        line_t *line = &lines[line_count];
        int rest = 0;
        if (end)
            *end = 0;
        line->gpu[0] = 0;
        if (sscanf(at, "%11s %63s %7s %n", line->verb, line->call, line->gpu, &rest) >= 2) {
            line->rest = at + (rest ? rest : (int)strlen(at));
            line_count++;
        }
        at = end ? end + 1 : NULL;
    }
}

/* What the script says last of this call of this GPU; NULL: nothing. */
static const char *said(const char *verb, const char *call, int gpu)
{
    char number[8];
    snprintf(number, sizeof number, "%d", gpu);
    for (int i = line_count - 1; i >= 0; i--)
        if (!strcmp(lines[i].verb, verb) && (!strcmp(lines[i].call, call) || !strcmp(lines[i].call, "*")) &&
            (!strcmp(lines[i].gpu, number) || !strcmp(lines[i].gpu, "*")))
            return lines[i].rest;
    return NULL;
}

/* Behaves as the script says; the numbers that stand here are the healthy ones. */
static said_t call(const char *name, int gpu, int count, const u64 *healthy)
{
    said_t it = {0, count, {0}};
    const char *words;
    read_script();
    if ((words = said("slow", name, gpu)))
        usleep((useconds_t)(atof(words) * 1000));
    if ((words = said("crash", name, gpu)))
        raise(atoi(words));
    while (said("hang", name, gpu)) {
        usleep(10000);
        read_script();
    }
    if ((words = said("answer", name, gpu)))
        it.code = atoi(words);
    if (count)
        memcpy(it.numbers, healthy, (size_t)count * sizeof *healthy);
    if ((words = said("numbers", name, gpu))) {
        char *end;
        int given = 0;
        for (const char *at = words; given < NUMBERS; at = end) {
            u64 number = *at == '-' ? (u64)strtoll(at, &end, 0) : strtoull(at, &end, 0);
            if (end == at)
                break;
            it.numbers[given++] = number;
        }
        for (int i = given; given && i < count; i++)
            it.numbers[i] = it.numbers[given - 1];
        it.count = given;
    }
    return it;
}

/* The begin of every call: "it" is what it is to answer, and an error goes back at once. */
#define BEGIN(gpu, ...)                                                                                                \
    const u64 healthy[] = {__VA_ARGS__};                                                                               \
    said_t it = call(__func__, gpu, (int)(sizeof healthy / sizeof *healthy), healthy);                                 \
    if (it.code)                                                                                                       \
    return it.code

static void put_text(const char *name, int gpu, char *out, size_t length)
{
    const char *at = said("text", name, gpu);
    memset(out, 0, length);
    for (size_t used = 0; at && *at && used < length; used++) { /* too long: nothing ends it */
        unsigned byte = (unsigned char)*at++;
        if (byte == '%' && sscanf(at, "%2x", &byte) == 1)
            at += 2;
        out[used] = (char)byte;
    }
}

#define TEXT(symbol)                                                                                                   \
    int symbol(device_t d, char *out, u32 length)                                                                      \
    {                                                                                                                  \
        BEGIN(d->gpu, 0);                                                                                              \
        put_text(__func__, d->gpu, out, length);                                                                       \
        return OK;                                                                                                     \
    }
#define ONE(symbol, type, healthy)                                                                                     \
    int symbol(device_t d, type *out)                                                                                  \
    {                                                                                                                  \
        BEGIN(d->gpu, healthy);                                                                                        \
        *out = (type)it.numbers[0];                                                                                    \
        return OK;                                                                                                     \
    }
#define TWO(symbol, first, second)                                                                                     \
    int symbol(device_t d, u32 *one, u32 *two)                                                                         \
    {                                                                                                                  \
        BEGIN(d->gpu, first, second);                                                                                  \
        *one = (u32)it.numbers[0];                                                                                     \
        *two = (u32)it.numbers[1];                                                                                     \
        return OK;                                                                                                     \
    }

/* The library itself. */

static struct { int gpu; } boards[GPUS];
static u64 registered[GPUS];
static long delivered;

static const line_t *board(u32 index)
{
    for (int i = 0; i < line_count; i++)
        if (!strcmp(lines[i].verb, "gpu") && !index--)
            return &lines[i];
    return NULL;
}

int nvmlInitWithFlags(u32 flags) { (void)flags; BEGIN(-1, 0); return OK; }
int nvmlShutdown(void) { BEGIN(-1, 0); return OK; }
const char *nvmlErrorString(int code) { (void)code; return "an error that only the library knows"; }
int nvmlSystemGetDriverVersion(char *out, u32 length) { BEGIN(-1, 0); put_text(__func__, -1, out, length); return OK; }
int nvmlSystemGetNVMLVersion(char *out, u32 length) { BEGIN(-1, 0); put_text(__func__, -1, out, length); return OK; }
int nvmlSystemGetCudaDriverVersion_v2(int *out) { BEGIN(-1, 13010); *out = (int)it.numbers[0]; return OK; }

int nvmlDeviceGetCount_v2(u32 *out)
{
    u32 there = 0;
    BEGIN(-1, 0);
    while (board(there))
        there++;
    *out = said("numbers", __func__, -1) ? (u32)it.numbers[0] : there;
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(u32 index, device_t *out)
{
    read_script();
    const line_t *line = board(index);
    int gpu = line ? atoi(line->call) : -1;
    BEGIN(gpu, 0);
    if (gpu < 0 || gpu >= GPUS)
        return INVALID_ARGUMENT;
    boards[gpu].gpu = gpu;
    *out = (device_t)&boards[gpu];
    return OK;
}

/* Events: one set, for one who waits. */

typedef struct { device_t device; u64 type, data; u32 gpu_instance, compute_instance; } event_t;

int nvmlEventSetCreate(void **out) { BEGIN(-1, 0); memset(registered, 0, sizeof registered); *out = out; return OK; }
int nvmlEventSetFree(void *set) { (void)set; BEGIN(-1, 0); memset(registered, 0, sizeof registered); return OK; }
ONE(nvmlDeviceGetSupportedEventTypes, u64, 0x801F)

int nvmlDeviceRegisterEvents(device_t d, u64 types, void *set)
{
    (void)set;
    BEGIN(d->gpu, 0);
    registered[d->gpu] = types;
    return OK;
}

int nvmlEventSetWait_v2(void *set, event_t *out, u32 milliseconds)
{
    (void)set;
    for (u32 waited = 0;; waited += 5) {
        BEGIN(-1, 0);
        for (int i = 0; i < line_count; i++) {
            long number = strcmp(lines[i].verb, "event") ? 0 : atol(lines[i].call);
            int gpu = atoi(lines[i].gpu);
            long long type, data;
            if (number <= delivered || sscanf(lines[i].rest, "%lli %lli", &type, &data) != 2)
                continue;
            delivered = number;
            if (gpu < 0 || gpu >= GPUS || !(registered[gpu] & (u64)type))
                continue;
            *out = (event_t){(device_t)&boards[gpu], (u64)type, (u64)data, UINT32_MAX, UINT32_MAX};
            return OK;
        }
        if (waited >= milliseconds)
            return TIMEOUT;
        usleep(5000);
    }
}

/* One GPU: what it is. */

TEXT(nvmlDeviceGetUUID)
TEXT(nvmlDeviceGetName)
TEXT(nvmlDeviceGetSerial)
ONE(nvmlDeviceGetArchitecture, u32, 9)
ONE(nvmlDeviceGetMinorNumber, u32, (u64)d->gpu)
ONE(nvmlDeviceGetMaxPcieLinkGeneration, u32, 5)
ONE(nvmlDeviceGetMaxPcieLinkWidth, u32, 16)

typedef struct { char legacy[16]; u32 domain, bus, device, id, subsystem; char address[32]; } pci_t;

int nvmlDeviceGetPciInfo_v3(device_t d, pci_t *out)
{
    BEGIN(d->gpu, 0);
    put_text(__func__, d->gpu, out->address, sizeof out->address);
    return OK;
}

/* Heat, clocks, power. */

typedef struct { u32 version, sensor; int32_t celsius; } temperature_t;
typedef struct { u32 version; int32_t celsius; } margin_t;
#define VERSION(out, n)                                                                                                \
    if ((out)->version != (sizeof *(out) | (n) << 24))                                                                 \
    return VERSION_MISMATCH

int nvmlDeviceGetTemperatureV(device_t d, temperature_t *out)
{
    BEGIN(d->gpu, 41);
    VERSION(out, 1);
    out->celsius = (int32_t)it.numbers[0];
    return OK;
}

int nvmlDeviceGetTemperature(device_t d, u32 sensor, u32 *out)
{
    (void)sensor;
    BEGIN(d->gpu, 41);
    *out = (u32)it.numbers[0];
    return OK;
}

int nvmlDeviceGetMarginTemperature(device_t d, margin_t *out)
{
    BEGIN(d->gpu, 46);
    VERSION(out, 1);
    out->celsius = (int32_t)it.numbers[0];
    return OK;
}

/* Limits in °C: shutdown, slowdown, memory, GPU. Boards from Ada on have offsets instead. */
int nvmlDeviceGetTemperatureThreshold(device_t d, u32 which, u32 *out)
{
    BEGIN(d->gpu, 0);
    if (which >= 4 || !said("numbers", __func__, d->gpu))
        return NOT_SUPPORTED;
    *out = (u32)it.numbers[it.count > (int)which ? (int)which : it.count - 1];
    return OK;
}

ONE(nvmlDeviceGetCurrentClocksEventReasons, u64, 1)
ONE(nvmlDeviceGetCurrentClocksThrottleReasons, u64, 1)
ONE(nvmlDeviceGetPowerUsage, u32, 71000)
ONE(nvmlDeviceGetEnforcedPowerLimit, u32, 700000)
ONE(nvmlDeviceGetTotalEnergyConsumption, u64, 5000000)

/* Memory. */

typedef struct {
    u32 version;
    u64 parity, secded, corrected, volatile_parity, volatile_secded, volatile_corrected, buckets[5];
    u32 threshold_exceeded;
} sram_t;
typedef struct { u32 max, high, partial, low, none; } histogram_t;
typedef struct { u32 version, channel, tpc; } repair_t;
typedef struct { u32 version, flag; } unrepairable_t;

TWO(nvmlDeviceGetEccMode, 1, 1)
ONE(nvmlDeviceGetRetiredPagesPendingStatus, u32, 0)
int nvmlDeviceValidateInforom(device_t d) { BEGIN(d->gpu, 0); return OK; }

/* Corrected volatile, uncorrected volatile, corrected aggregate, uncorrected aggregate. */
int nvmlDeviceGetTotalEccErrors(device_t d, u32 kind, u32 counter, u64 *out)
{
    BEGIN(d->gpu, 0, 0, 0, 0);
    *out = it.numbers[(kind & 1) + 2 * (counter & 1)];
    return OK;
}

int nvmlDeviceGetSramEccErrorStatus(device_t d, sram_t *out)
{
    BEGIN(d->gpu, 0, 0, 0);
    VERSION(out, 1);
    out->threshold_exceeded = (u32)it.numbers[0];
    out->parity = it.numbers[1];
    out->secded = it.numbers[2];
    return OK;
}

int nvmlDeviceGetRemappedRows(device_t d, u32 *corrected, u32 *uncorrected, u32 *pending, u32 *failure)
{
    BEGIN(d->gpu, 0, 0, 0, 0);
    *corrected = (u32)it.numbers[0];
    *uncorrected = (u32)it.numbers[1];
    *pending = (u32)it.numbers[2];
    *failure = (u32)it.numbers[3];
    return OK;
}

int nvmlDeviceGetRowRemapperHistogram(device_t d, histogram_t *out)
{
    BEGIN(d->gpu, 640, 0, 0, 0, 0);
    *out = (histogram_t){(u32)it.numbers[0], (u32)it.numbers[1], (u32)it.numbers[2], (u32)it.numbers[3],
                         (u32)it.numbers[4]};
    return OK;
}

int nvmlDeviceGetRepairStatus(device_t d, repair_t *out)
{
    BEGIN(d->gpu, 0, 0);
    VERSION(out, 1);
    out->channel = (u32)it.numbers[0];
    out->tpc = (u32)it.numbers[1];
    return OK;
}

int nvmlDeviceGetUnrepairableMemoryFlag_v1(device_t d, unrepairable_t *out)
{
    BEGIN(d->gpu, 0);
    VERSION(out, 1);
    out->flag = (u32)it.numbers[0];
    return OK;
}

/* How many pages there are is asked first, then which. */
int nvmlDeviceGetRetiredPages(device_t d, u32 cause, u32 *count, u64 *out)
{
    (void)cause;
    BEGIN(d->gpu, 0);
    u32 there = (u32)it.numbers[0], room = *count;
    *count = there;
    if (!out || room < there)
        return there ? INSUFFICIENT_SIZE : OK;
    memset(out, 0, there * sizeof *out);
    return OK;
}

/* PCIe, NVLink, the fabric. */

ONE(nvmlDeviceGetCurrPcieLinkGeneration, u32, 5)
ONE(nvmlDeviceGetCurrPcieLinkWidth, u32, 16)
ONE(nvmlDeviceGetPcieReplayCounter, u32, 0)

typedef struct { u32 version; unsigned char uuid[16]; u32 status, clique; unsigned char state; u32 mask; } fabric_v2_t;
typedef struct {
    u32 version;
    unsigned char uuid[16];
    u32 status, clique;
    unsigned char state;
    u32 mask;
    unsigned char summary;
} fabric_v3_t;

/* State, status, mask, summary, and whether the driver knows the third version of the structure. */
int nvmlDeviceGetGpuFabricInfoV(device_t d, fabric_v3_t *out)
{
    BEGIN(d->gpu, 3, 0, 0x1AA, 1, 1);
    int third = out->version == (sizeof(fabric_v3_t) | 3 << 24) && it.numbers[4];
    if (!third && out->version != (sizeof(fabric_v2_t) | 2 << 24))
        return VERSION_MISMATCH;
    out->state = (unsigned char)it.numbers[0];
    out->status = (u32)it.numbers[1];
    out->mask = (u32)it.numbers[2];
    if (third)
        out->summary = (unsigned char)it.numbers[3];
    return OK;
}

/* How many links there are, and how many of them are up. */
static int link_up(const char *name, device_t d, u32 link, u32 *up)
{
    const u64 healthy[] = {2, 2};
    said_t it = call(name, d->gpu, 2, healthy);
    *up = link < it.numbers[1];
    return it.code ? it.code : link < it.numbers[0] ? OK : INVALID_ARGUMENT;
}

int nvmlDeviceGetNvLinkState(device_t d, u32 link, u32 *out) { return link_up(__func__, d, link, out); }
int nvmlDeviceGetNvLinkRemoteDeviceType(device_t d, u32 link, u32 *out)
{
    (void)link;
    BEGIN(d->gpu, 2);
    *out = (u32)it.numbers[0];
    return OK;
}

int nvmlDeviceGetNvLinkRemotePciInfo_v2(device_t d, u32 link, pci_t *out)
{
    (void)link;
    BEGIN(d->gpu, 0);
    put_text(__func__, d->gpu, out->address, sizeof out->address);
    return OK;
}

/* Field values: each has an error code of its own. */

typedef struct { u32 id, scope; int64_t time, latency; u32 type, code; u64 value; } field_t;
static const struct { u32 id, type; int64_t value; } healthy_fields[] = {
    {91, 1, 2},    {230, 1, 0},   {82, 1, 50},   {193, 5, -12}, {194, 5, -2},  {195, 5, 0},  {196, 5, 0},
    {269, 3, 0},   {270, 3, 0},   {271, 3, 0},   {180, 1, 0},   {74, 3, 0},    {75, 3, 0},   {165, 1, 1},
    {161, 3, 0},   {162, 3, 0},   {163, 3, 0},   {214, 3, 0},   {220, 3, 0},
};

int nvmlDeviceGetFieldValues(device_t d, int count, field_t *out)
{
    BEGIN(d->gpu, 0);
    for (int i = 0; i < count; i++) {
        char id[16], type[8] = "-";
        long long value = NOT_SUPPORTED;
        snprintf(id, sizeof id, "%u", out[i].id);
        const char *words = said("field", id, d->gpu);
        if (words)
            sscanf(words, "%7s %lli", type, &value);
        else
            for (size_t j = 0; j < sizeof healthy_fields / sizeof *healthy_fields; j++)
                if (healthy_fields[j].id == out[i].id) {
                    snprintf(type, sizeof type, "%u", healthy_fields[j].type);
                    value = healthy_fields[j].value;
                }
        out[i].code = *type == '-' ? (u32)value : OK;
        out[i].type = (u32)atoi(type);
        out[i].value = out[i].code ? 0 : (u64)value;
    }
    return OK;
}

/* What is set on it, and who computes on it: the processes are the numbers. */

typedef struct { u32 pid; u64 memory; u32 gpu_instance, compute_instance; } process_t;

ONE(nvmlDeviceGetPersistenceMode, u32, 1)
TWO(nvmlDeviceGetMigMode, 0, 0)

static int processes(const char *name, device_t d, u32 *count, process_t *out)
{
    said_t it = call(name, d->gpu, 0, NULL);
    if (it.code)
        return it.code;
    u32 room = *count;
    *count = (u32)it.count;
    if (it.count && (!out || room < *count))
        return INSUFFICIENT_SIZE;
    for (u32 i = 0; i < *count; i++)
        out[i] = (process_t){(u32)it.numbers[i], 0, UINT32_MAX, UINT32_MAX};
    return OK;
}

int nvmlDeviceGetComputeRunningProcesses_v2(device_t d, u32 *n, process_t *out) { return processes(__func__, d, n, out); }
int nvmlDeviceGetComputeRunningProcesses_v3(device_t d, u32 *n, process_t *out) { return processes(__func__, d, n, out); }
