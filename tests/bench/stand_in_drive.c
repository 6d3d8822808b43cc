/* A stand-in for libusb-1.0 with one USB device: a bulk-only drive at SuperSpeed, whose blocks are in memory. Debian's
 * usbredirect, started with it in the place of the library, gives that drive away; nothing of a kernel is needed, and as
 * little time goes to the device as can be. Structures and numbers are those of libusb's documented ABI, the drive is
 * that of USB MSC BOT 1.0. STAND_IN_MIB in the environment is its size.
 *
 * Transfers are done one after the other in the thread that handles events, as with libusb. */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>

enum { SUCCESS = 0, NOT_FOUND = -5, NOT_SUPPORTED = -12 };
enum { COMPLETED = 0, CANCELLED = 3, STALL = 4 };
enum { BLOCK = 512, IN = 0x81, OUT = 0x02 };

typedef struct transfer transfer;
struct transfer {
    void *handle;
    uint8_t flags;
    unsigned char endpoint, type;
    unsigned int timeout;
    int status;
    int length, actual;
    void (*callback)(transfer *);
    void *user_data;
    unsigned char *buffer;
    int packets;
};
typedef struct entry {
    struct entry *next;
    int cancelled;
    transfer it;
} entry;
#define ENTRY(t) ((entry *)((char *)(t) - offsetof(entry, it)))

typedef struct {
    uint8_t length, type;
    uint16_t usb;
    uint8_t class, subclass, protocol, packet_0;
    uint16_t vendor, product, version;
    uint8_t manufacturer, name, serial, configurations;
} device_descriptor;
typedef struct {
    uint8_t length, type, address, attributes;
    uint16_t packet;
    uint8_t interval, refresh, sync;
    const unsigned char *extra;
    int extra_length;
} endpoint_descriptor;
typedef struct {
    uint8_t length, type, number, alternate, endpoints, class, subclass, protocol, name;
    const endpoint_descriptor *endpoint;
    const unsigned char *extra;
    int extra_length;
} interface_descriptor;
typedef struct {
    const interface_descriptor *setting;
    int count;
} interface;
typedef struct {
    uint8_t length, type;
    uint16_t total;
    uint8_t interfaces, value, name, attributes, power;
    const interface *interface;
    const unsigned char *extra;
    int extra_length;
} config_descriptor;

static const device_descriptor device = {18, 1, 0x0300, 0, 0, 0, 9, 0x1209, 0x0001, 0x0100, 1, 2, 3, 1};
static const endpoint_descriptor ends[] = {{7, 5, IN, 2, 1024, 0, 0, 0, NULL, 0}, {7, 5, OUT, 2, 1024, 0, 0, 0, NULL, 0}};
static const interface_descriptor setting = {9, 4, 0, 0, 2, 8, 6, 0x50, 0, ends, NULL, 0};
static const interface only = {&setting, 1};
static config_descriptor configuration = {9, 2, 44, 1, 1, 0, 0xC0, 0, &only, NULL, 0};
static const unsigned char raw_configuration[44] = {
    9, 2, 44, 0, 1, 1, 0, 0xC0, 0, 9, 4, 0, 0, 2, 8, 6, 0x50, 0,
    7, 5, IN, 2, 0, 4, 0, 6, 48, 15, 0, 0, 0, 7, 5, OUT, 2, 0, 4, 0, 6, 48, 15, 0, 0, 0,
};
static const unsigned char object_store[22] = {5, 15, 22, 0, 2, 7, 16, 2, 2, 0, 0, 0, 10, 16, 3, 0, 14, 0, 1, 10, 255, 7};
static const char *const strings[] = {"", "usbvfiod", "Stand-in drive", "0123456789AB"};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t news = PTHREAD_COND_INITIALIZER;
static entry *first, **last = &first;
static int interrupted;

/* -- the drive -- */

static unsigned char *blocks;
static uint32_t count;
static enum { COMMAND, SEND, TAKE, STATUS } phase;
static unsigned char tag[4], failed, sense, small[256];
static unsigned char *data;
static uint32_t left, residue;

static uint32_t big(const unsigned char *at) { return (uint32_t)at[0] << 24 | at[1] << 16 | at[2] << 8 | at[3]; }
static void put(unsigned char *at, uint32_t value) { at[0] = value >> 24, at[1] = value >> 16, at[2] = value >> 8, at[3] = value; }

static void answer(uint32_t length, uint32_t wanted) {
    data = small;
    left = length < wanted ? length : wanted;
    phase = SEND;
}

static void command(const unsigned char *wrapper) {
    const unsigned char *cdb = wrapper + 15;
    uint32_t wanted = wrapper[8] | wrapper[9] << 8 | wrapper[10] << 16 | (uint32_t)wrapper[11] << 24;
    uint32_t block = big(cdb + 2), length = cdb[7] << 8 | cdb[8];
    memcpy(tag, wrapper + 4, 4);
    memset(small, 0, sizeof small);
    failed = 0, left = 0, phase = wanted ? SEND : STATUS;
    switch (cdb[0]) {
    case 0x00: case 0x1B: case 0x1E: case 0x35:
        break;
    case 0x03:
        small[0] = 0x70, small[2] = sense ? 5 : 0, small[7] = 10, small[12] = sense, sense = 0;
        answer(18, wanted);
        break;
    case 0x12:
        if (cdb[1] & 1) {
            failed = 1;
            break;
        }
        small[2] = 6, small[3] = 2, small[4] = 31;
        memcpy(small + 8, "usbvfiodStand-in drive  1   ", 28);
        answer(36, wanted);
        break;
    case 0x1A:
        small[0] = 3;
        answer(4, wanted);
        break;
    case 0x25:
        put(small, count - 1), put(small + 4, BLOCK);
        answer(8, wanted);
        break;
    case 0x28: case 0x2A:
        if (block > count || length > count - block || wanted != length * BLOCK) {
            failed = 1;
            break;
        }
        data = blocks + (size_t)block * BLOCK, left = wanted;
        phase = !wanted ? STATUS : cdb[0] == 0x28 ? SEND : TAKE;
        break;
    default:
        failed = 1;
    }
    if (failed)
        sense = 0x20;
    residue = wanted - left;
}

static void bulk(transfer *it) {
    if (it->endpoint == OUT && phase == TAKE && (uint32_t)it->length <= left) {
        memcpy(data, it->buffer, it->length);
        data += it->length, left -= it->length, it->actual = it->length;
        if (!left)
            phase = STATUS;
    } else if (it->endpoint == OUT && it->length == 31 && !memcmp(it->buffer, "USBC", 4)) {
        command(it->buffer);
        it->actual = 31;
    } else if (it->endpoint == IN && phase == SEND) {
        uint32_t part = (uint32_t)it->length < left ? (uint32_t)it->length : left;
        memcpy(it->buffer, data, part);
        data += part, left -= part, it->actual = part;
        if (!left)
            phase = STATUS;
    } else if (it->endpoint == IN && phase == STATUS && it->length >= 13) {
        memcpy(it->buffer, "USBS", 4), memcpy(it->buffer + 4, tag, 4);
        for (int byte = 0; byte < 4; byte++)
            it->buffer[8 + byte] = residue >> 8 * byte;
        it->buffer[12] = failed, it->actual = 13, phase = COMMAND;
    } else {
        it->status = STALL;
    }
}

static void control(transfer *it) {
    const unsigned char *setup = it->buffer, *from = NULL;
    unsigned char text[64];
    int wanted = setup[6] | setup[7] << 8, length = 0;
    if (setup[0] == 0x80 && setup[1] == 6 && setup[3] == 1)
        from = (const unsigned char *)&device, length = sizeof device;
    else if (setup[0] == 0x80 && setup[1] == 6 && setup[3] == 2)
        from = raw_configuration, length = sizeof raw_configuration;
    else if (setup[0] == 0x80 && setup[1] == 6 && setup[3] == 15)
        from = object_store, length = sizeof object_store;
    else if (setup[0] == 0x80 && setup[1] == 6 && setup[3] == 3 && setup[2] < 4) {
        const char *name = strings[setup[2]];
        from = text, length = setup[2] ? 2 + 2 * (int)strlen(name) : 4;
        memset(text, 0, sizeof text), text[0] = length, text[1] = 3;
        for (int at = 2; setup[2] && at < length; at += 2)
            text[at] = name[at / 2 - 1];
        if (!setup[2])
            text[2] = 9, text[3] = 4;
    } else if (setup[0] == 0xA1 && setup[1] == 0xFE)
        from = small, small[0] = 0, length = 1;
    else if (setup[0] == 0x21 && setup[1] == 0xFF)
        phase = COMMAND;
    else if ((setup[0] & 0x9F) == 0x80 && setup[1] == 0)
        memset(text, 0, 2), from = text, length = 2;
    else if (setup[0] & 0x80 || setup[0] & 0x60) {
        it->status = STALL;
        return;
    }
    it->actual = setup[0] & 0x80 ? (length < wanted ? length : wanted) : wanted;
    if (from)
        memcpy(it->buffer + 8, from, it->actual);
}

/* -- libusb -- */

static int handle(const struct timespec *until) {
    pthread_mutex_lock(&lock);
    while (!first && !interrupted)
        if (until ? pthread_cond_timedwait(&news, &lock, until) : pthread_cond_wait(&news, &lock))
            break;
    interrupted = 0;
    entry *each = first;
    if (each && !(first = each->next))
        last = &first;
    pthread_mutex_unlock(&lock);
    if (each) {
        each->it.actual = 0, each->it.status = each->cancelled ? CANCELLED : COMPLETED;
        if (!each->cancelled)
            each->it.type ? bulk(&each->it) : control(&each->it);
        each->it.callback(&each->it);
    }
    return SUCCESS;
}

static void wake(void) {
    pthread_mutex_lock(&lock);
    interrupted = 1;
    pthread_cond_broadcast(&news);
    pthread_mutex_unlock(&lock);
}

static int a_context, a_device, a_handle;

int libusb_init(void **context) {
    const char *mebibytes = getenv("STAND_IN_MIB");
    count = (mebibytes ? atoi(mebibytes) : 64) * (1048576 / BLOCK);
    blocks = malloc((size_t)count * BLOCK);
    for (size_t at = 0; blocks && at < (size_t)count * BLOCK; at++)
        blocks[at] = at >> 20;
    if (context)
        *context = &a_context;
    return blocks ? SUCCESS : -11;
}
void libusb_exit(void *context) { (void)context; }
int libusb_set_option(void *context, int option, ...) { return (void)context, (void)option, SUCCESS; }
void libusb_set_log_cb(void *context, void *call, int mode) { (void)context, (void)call, (void)mode; }
const char *libusb_error_name(int code) { return code ? "error" : "success"; }
const char *libusb_strerror(int code) { return libusb_error_name(code); }
long libusb_get_device_list(void *context, void ***list) {
    (void)context;
    *list = calloc(2, sizeof **list);
    (*list)[0] = &a_device;
    return 1;
}
void libusb_free_device_list(void **list, int unreference) { (void)unreference, free(list); }
uint8_t libusb_get_bus_number(void *of) { return (void)of, 1; }
uint8_t libusb_get_device_address(void *of) { return (void)of, 2; }
int libusb_get_device_descriptor(void *of, device_descriptor *to) { return (void)of, *to = device, SUCCESS; }
int libusb_get_active_config_descriptor(void *of, config_descriptor **to) { return (void)of, *to = &configuration, SUCCESS; }
int libusb_get_config_descriptor(void *of, uint8_t index, config_descriptor **to) {
    return (void)of, *to = &configuration, index ? NOT_FOUND : SUCCESS;
}
void libusb_free_config_descriptor(config_descriptor *of) { (void)of; }
int libusb_get_ss_endpoint_companion_descriptor(void *context, const void *of, void **to) {
    return (void)context, (void)of, (void)to, NOT_FOUND;
}
void libusb_free_ss_endpoint_companion_descriptor(void *of) { (void)of; }
int libusb_get_device_speed(void *of) { return (void)of, 4; }
int libusb_open(void *of, void **to) { return (void)of, *to = &a_handle, SUCCESS; }
void libusb_close(void *of) { (void)of, wake(); }
void *libusb_get_device(void *of) { return (void)of, &a_device; }
int libusb_set_auto_detach_kernel_driver(void *of, int on) { return (void)of, (void)on, SUCCESS; }
int libusb_attach_kernel_driver(void *of, int number) { return (void)of, (void)number, NOT_FOUND; }
int libusb_claim_interface(void *of, int number) { return (void)of, (void)number, SUCCESS; }
int libusb_release_interface(void *of, int number) { return (void)of, (void)number, SUCCESS; }
int libusb_set_configuration(void *of, int value) { return (void)of, (void)value, SUCCESS; }
int libusb_set_interface_alt_setting(void *of, int number, int to) { return (void)of, (void)number, (void)to, SUCCESS; }
int libusb_clear_halt(void *of, unsigned char endpoint) { return (void)of, (void)endpoint, SUCCESS; }
int libusb_reset_device(void *of) { return (void)of, phase = COMMAND, SUCCESS; }
int libusb_alloc_streams(void *of, uint32_t number, unsigned char *ends_of, int of_them) {
    return (void)of, (void)number, (void)ends_of, (void)of_them, NOT_SUPPORTED;
}
int libusb_free_streams(void *of, unsigned char *ends_of, int of_them) {
    return (void)of, (void)ends_of, (void)of_them, NOT_SUPPORTED;
}
void libusb_transfer_set_stream_id(transfer *of, uint32_t number) { (void)of, (void)number; }
transfer *libusb_alloc_transfer(int packets) {
    entry *made = calloc(1, sizeof *made + packets * 12);
    return made ? &made->it : NULL;
}
void libusb_free_transfer(transfer *of) {
    if (!of)
        return;
    if (of->flags & 2) /* LIBUSB_TRANSFER_FREE_BUFFER */
        free(of->buffer);
    free(ENTRY(of));
}
int libusb_submit_transfer(transfer *of) {
    entry *each = ENTRY(of);
    pthread_mutex_lock(&lock);
    each->next = NULL, each->cancelled = 0;
    *last = each, last = &each->next;
    pthread_cond_broadcast(&news);
    pthread_mutex_unlock(&lock);
    return SUCCESS;
}
int libusb_cancel_transfer(transfer *of) {
    int found = NOT_FOUND;
    pthread_mutex_lock(&lock);
    for (entry *each = first; each; each = each->next)
        if (&each->it == of)
            each->cancelled = 1, found = SUCCESS;
    pthread_mutex_unlock(&lock);
    return found;
}
void libusb_interrupt_event_handler(void *context) { (void)context, wake(); }
int libusb_handle_events(void *context) { return (void)context, handle(NULL); }
int libusb_handle_events_timeout(void *context, struct timeval *patience) {
    struct timespec until;
    (void)context;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec += patience->tv_sec, until.tv_nsec += patience->tv_usec * 1000L;
    if (until.tv_nsec >= 1000000000L)
        until.tv_sec++, until.tv_nsec -= 1000000000L;
    return handle(&until);
}
