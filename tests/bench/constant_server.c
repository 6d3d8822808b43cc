/* A vfio-user server that answers constants: the least that any server can cost. `constant_server SOCKET`
 *
 * It speaks as much of the protocol as QEMU needs to show a guest a PCI function of no known class with one BAR of 4 KiB,
 * whose registers all read as 0x01234567. It serves one client and ends with it.
 */

#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { VERSION = 1, DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION_INFO, GET_IRQ_INFO = 7, SET_IRQS, READ, WRITE, RESET = 13 };
enum { REPLY = 1, NO_REPLY = 0x10, FAILED = 0x20 };
enum { BAR0 = 0, CONFIG = 7, REGIONS = 9, IRQS = 5, CONFIG_SIZE = 256, BAR_SIZE = 4096, UNSUPPORTED = 95 };
enum { LARGEST = 1 << 16, DESCRIPTORS = 16 };

struct header {
    uint16_t id, command;
    uint32_t size, flags, error;
};
struct access {
    uint64_t offset;
    uint32_t region, count;
};
struct region {
    uint32_t argsz, flags, index, capabilities;
    uint64_t size, offset;
};

static uint8_t config[CONFIG_SIZE] = {
    [0] = 0x34, [1] = 0x12, [2] = 0xde, [3] = 0xc0, /* vendor and device: nobody's */
    [11] = 0xff,                                    /* class: none of the known ones */
    [16] = 0x04,                                    /* BAR 0: memory, 64 bits */
};
static uint8_t message[LARGEST];

/* Receive exactly so many bytes, and close what descriptors come with them; 0 when the client has gone. */
static int receive(int client, uint8_t *to, size_t size)
{
    while (size) {
        char control[CMSG_SPACE(DESCRIPTORS * sizeof(int))];
        struct iovec piece = {to, size};
        struct msghdr with = {.msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        ssize_t got = recvmsg(client, &with, 0);
        if (got <= 0)
            return 0;
        for (struct cmsghdr *each = CMSG_FIRSTHDR(&with); each; each = CMSG_NXTHDR(&with, each)) {
            if (each->cmsg_level != SOL_SOCKET || each->cmsg_type != SCM_RIGHTS)
                continue;
            for (size_t at = CMSG_LEN(0); at + sizeof(int) <= each->cmsg_len; at += sizeof(int)) {
                int fd;
                memcpy(&fd, (char *)each + at, sizeof fd);
                close(fd);
            }
        }
        to += got;
        size -= got;
    }
    return 1;
}

/* Put the answer's payload behind the header; returns its size, or -1 for a refusal. */
static int answer(uint16_t command, uint8_t *payload, uint32_t size)
{
    struct access access;
    struct region region;

    switch (command) {
    case VERSION: {
        static const char data[] = "{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576}}";
        memset(payload, 0, 4);
        memcpy(payload + 4, data, sizeof data);
        return 4 + sizeof data;
    }
    case GET_INFO: {
        uint32_t info[4] = {sizeof info, 3, REGIONS, IRQS}; /* it can be reset, and is a PCI function */
        memcpy(payload, info, sizeof info);
        return sizeof info;
    }
    case GET_REGION_INFO:
        if (size < sizeof region)
            return -1;
        memcpy(&region, payload, sizeof region);
        region.argsz = sizeof region;
        region.capabilities = region.offset = 0;
        region.size = region.index == BAR0 ? BAR_SIZE : region.index == CONFIG ? CONFIG_SIZE : 0;
        region.flags = region.size ? 3 : 0;
        memcpy(payload, &region, sizeof region);
        return sizeof region;
    case GET_IRQ_INFO: {
        uint32_t info[4];
        if (size < sizeof info)
            return -1;
        memcpy(info, payload, sizeof info);
        info[1] = info[3] = 0;
        memcpy(payload, info, sizeof info);
        return sizeof info;
    }
    case READ:
        if (size < sizeof access)
            return -1;
        memcpy(&access, payload, sizeof access);
        if (access.count > LARGEST / 2)
            return -1;
        if (access.region == CONFIG) {
            if (access.offset > CONFIG_SIZE || access.count > CONFIG_SIZE - access.offset)
                return -1;
            memcpy(payload + sizeof access, config + access.offset, access.count);
        } else {
            for (uint32_t at = 0; at < access.count; at++)
                payload[sizeof access + at] = 0x01234567 >> 8 * (access.offset + at & 3);
        }
        return sizeof access + access.count;
    case WRITE:
        if (size < sizeof access)
            return -1;
        memcpy(&access, payload, sizeof access);
        if (access.region == CONFIG && access.offset == 4 && size > sizeof access + 1)
            memcpy(config + 4, payload + sizeof access, 2); /* the command register */
        return sizeof access;
    case DMA_UNMAP:
        return size < 24 ? -1 : 24;
    case DMA_MAP:
    case SET_IRQS:
    case RESET:
        return 0;
    }
    return -1;
}

int main(int count, char **words)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (count != 2 || strlen(words[1]) >= sizeof address.sun_path) {
        fprintf(stderr, "usage: constant_server SOCKET\n");
        return 2;
    }
    strcpy(address.sun_path, words[1]);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1)) {
        perror(words[1]);
        return 1;
    }
    int client = accept(listener, NULL, NULL);
    struct header header;
    uint8_t *payload = message + sizeof header;
    while (client >= 0 && receive(client, message, sizeof header)) {
        memcpy(&header, message, sizeof header);
        uint32_t size = header.size - sizeof header;
        if (header.size < sizeof header || size > LARGEST - sizeof header || !receive(client, payload, size))
            break;
        int length = answer(header.command, payload, size);
        if (header.flags & NO_REPLY)
            continue;
        header.flags = length < 0 ? REPLY | FAILED : REPLY;
        header.error = length < 0 ? UNSUPPORTED : 0;
        header.size = sizeof header + (length < 0 ? 0 : length);
        memcpy(message, &header, sizeof header);
        if (send(client, message, header.size, MSG_NOSIGNAL) != (ssize_t)header.size)
            break;
    }
    return 0;
}
