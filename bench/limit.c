/* The limit: the same bytes over the same two hops, and nothing else.
 *
 *   limit secondary --listen PORT --file FILE [--crc]
 *   limit primary --socket PATH --file FILE [--peer PORT] [--crc]
 *
 * The primary is an NBD server on a Unix socket. One wake-up takes one receive from a client and
 * everything complete in it: one sendmsg to the secondary, one pwrite a request, reads from the
 * local file. The secondary writes what one receive held and acknowledges it with one frame. A FLUSH
 * syncs both files. Without --peer the primary is alone; with --crc each frame carries the crc32c of
 * its payload and the secondary verifies it.
 *
 * It keeps no order between overlapping writes, no metadata, no state; it trusts its peer and its
 * clients and ends at the first surprise. What is slower than this is what a product adds; what is
 * left here is the kernel's. It must never grow a feature. Prints "ready" when it can be used.
 */

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <endian.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "crc32c.h"

enum {
    REQUEST_BYTES_MAX = 4 << 20,
    RECEIVE_BYTES = 8 << 20,  /* always room for one more request of the largest size */
    ANSWER_BYTES = 8 << 20,
    SOCKET_BUFFER_BYTES = 4 << 20,
    CLIENTS_MAX = 16,
    IN_FLIGHT_MAX = 1 << 16,  /* a power of two */
    PIECES_MAX = 1024,
};

/* NBD, proto.md of the NBD project: newstyle fixed handshake, simple replies. */
enum {
    NBD_OPT_EXPORT_NAME = 1, NBD_OPT_ABORT = 2, NBD_OPT_INFO = 6, NBD_OPT_GO = 7,
    NBD_REP_ACK = 1, NBD_REP_INFO = 3, NBD_INFO_EXPORT = 0,
    NBD_CMD_READ = 0, NBD_CMD_WRITE = 1, NBD_CMD_DISC = 2, NBD_CMD_FLUSH = 3,
    /* has flags, flush, several connections see the same */
    EXPORT_FLAGS = 1 | 1 << 2 | 1 << 8,
};
static const uint64_t NBD_MAGIC = 0x4e42444d41474943, NBD_OPTION_MAGIC = 0x49484156454f5054,
                      NBD_OPTION_REPLY_MAGIC = 0x3e889045565a9;
static const uint32_t NBD_REP_ERR_UNSUP = 0x80000001, NBD_REQUEST_MAGIC = 0x25609513,
                      NBD_REPLY_MAGIC = 0x67446698;

struct request {
    uint32_t magic;
    uint16_t flags, type;
    uint64_t cookie, offset;
    uint32_t length;
} __attribute__((packed));

struct reply {
    uint32_t magic, error;
    uint64_t cookie;
} __attribute__((packed));

/* Between the two nodes, host byte order; as long as a frame header of the product. */
enum kind { FRAME_WRITE, FRAME_FLUSH, FRAME_ACK };
struct frame {
    uint32_t kind, length;
    uint64_t seq, offset;
    uint32_t crc, unused[5];
};
_Static_assert(sizeof(struct frame) == 48, "the product's frame header has 48 bytes");

struct buffer {
    unsigned char *bytes;
    size_t start, end;
};

struct client {
    int fd;  /* -1: free */
    uint64_t serial;
    struct buffer in;
    unsigned char *out;
    size_t out_bytes;
};

struct pending {
    struct client *client;
    uint64_t serial, cookie;
};

static int file_fd, peer_fd = -1;
static uint64_t file_bytes, sent_seq, acked_seq, serials;
static bool with_crc;
static struct client clients[CLIENTS_MAX];
static struct pending in_flight[IN_FLIGHT_MAX];
static struct frame frames[PIECES_MAX / 2];
static struct iovec pieces[PIECES_MAX];
static int pieces_used;

/* Sockets and files. */

static unsigned char *allocate(size_t count)
{
    unsigned char *bytes = malloc(count);
    if (!bytes)
        err(1, "malloc");
    return bytes;
}

static void send_all(int fd, struct iovec *vector, int count)
{
    while (count) {
        struct msghdr message = {.msg_iov = vector, .msg_iovlen = (size_t)count};
        ssize_t sent = sendmsg(fd, &message, MSG_NOSIGNAL);
        if (sent < 0)
            err(1, "sendmsg");
        for (; count && (size_t)sent >= vector->iov_len; vector++, count--)
            sent -= (ssize_t)vector->iov_len;
        if (count) {
            vector->iov_base = (char *)vector->iov_base + sent;
            vector->iov_len -= (size_t)sent;
        }
    }
}

static void send_bytes(int fd, const void *bytes, size_t count)
{
    send_all(fd, &(struct iovec){(void *)(uintptr_t)bytes, count}, 1);
}

static void receive_bytes(int fd, void *bytes, size_t count)
{
    if (count && recv(fd, bytes, count, MSG_WAITALL) != (ssize_t)count)
        errx(1, "the handshake ended early");
}

static void write_file(const void *bytes, size_t count, uint64_t offset)
{
    if (pwrite(file_fd, bytes, count, (off_t)offset) != (ssize_t)count)
        err(1, "pwrite");
}

static void sync_file(void)
{
    if (fdatasync(file_fd))
        err(1, "fdatasync");
}

static void tune(int fd)
{
    int size = SOCKET_BUFFER_BYTES, on = 1;
    setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);  /* fails on a Unix socket */
}

/* One receive; false at the end of the stream. Room for one largest request is made first. */
static bool receive(int fd, struct buffer *in)
{
    if (in->start == in->end) {
        in->start = in->end = 0;
    } else if (RECEIVE_BYTES - in->start < REQUEST_BYTES_MAX + sizeof(struct frame)) {
        memmove(in->bytes, in->bytes + in->start, in->end - in->start);
        in->end -= in->start;
        in->start = 0;
    }
    ssize_t got = recv(fd, in->bytes + in->end, RECEIVE_BYTES - in->end, 0);
    if (got <= 0)
        return false;
    in->end += (size_t)got;
    return true;
}

/* The secondary. */

static void serve_secondary(uint16_t port)
{
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1))
        err(1, "port %u", port);
    puts("ready");
    fflush(stdout);
    int fd = accept(listener, NULL, NULL);
    if (fd < 0)
        err(1, "accept");
    tune(fd);
    struct buffer in = {.bytes = allocate(RECEIVE_BYTES)};
    while (receive(fd, &in)) {
        struct frame frame, ack = {.kind = FRAME_ACK};
        while (in.end - in.start >= sizeof frame) {
            memcpy(&frame, in.bytes + in.start, sizeof frame);
            if (in.end - in.start < sizeof frame + frame.length)
                break;
            unsigned char *payload = in.bytes + in.start + sizeof frame;
            if (frame.kind == FRAME_FLUSH) {
                sync_file();
            } else {
                if (with_crc && crc32c(payload, frame.length) != frame.crc)
                    errx(1, "frame %llu is broken", (unsigned long long)frame.seq);
                write_file(payload, frame.length, frame.offset);
            }
            in.start += sizeof frame + frame.length;
            ack.seq = frame.seq;
        }
        if (ack.seq)
            send_bytes(fd, &ack, sizeof ack);
    }
}

/* The primary: answers to clients. */

static void send_answers(struct client *client)
{
    if (client->out_bytes && client->fd >= 0)
        send_bytes(client->fd, client->out, client->out_bytes);
    client->out_bytes = 0;
}

static unsigned char *answer(struct client *client, uint64_t cookie, size_t data_bytes)
{
    struct reply reply = {.magic = htobe32(NBD_REPLY_MAGIC), .cookie = cookie};
    if (client->out_bytes + sizeof reply + data_bytes > ANSWER_BYTES)
        send_answers(client);
    unsigned char *at = client->out + client->out_bytes;
    memcpy(at, &reply, sizeof reply);
    client->out_bytes += sizeof reply + data_bytes;
    return at + sizeof reply;
}

static void take_acks(void)
{
    static struct buffer in;
    if (!in.bytes)
        in.bytes = allocate(RECEIVE_BYTES);
    if (!receive(peer_fd, &in))
        errx(1, "the secondary is gone");
    struct frame ack;
    for (; in.end - in.start >= sizeof ack; in.start += sizeof ack) {
        memcpy(&ack, in.bytes + in.start, sizeof ack);
        while (acked_seq < ack.seq) {
            struct pending *done = &in_flight[++acked_seq % IN_FLIGHT_MAX];
            if (done->client->serial == done->serial)
                answer(done->client, done->cookie, 0);
        }
    }
    for (int i = 0; i < CLIENTS_MAX; i++)
        send_answers(&clients[i]);
}

/* The primary: requests of clients. */

static void send_frames(void)
{
    if (pieces_used)
        send_all(peer_fd, pieces, pieces_used);
    pieces_used = 0;
}

static void add_frame(struct client *client, enum kind kind, const struct request *request,
                      unsigned char *payload, uint32_t length)
{
    if (pieces_used == PIECES_MAX)
        send_frames();
    struct frame *frame = &frames[pieces_used / 2];
    *frame = (struct frame){.kind = kind, .length = length, .seq = ++sent_seq,
                            .offset = be64toh(request->offset),
                            .crc = with_crc ? crc32c(payload, length) : 0};
    pieces[pieces_used++] = (struct iovec){frame, sizeof *frame};
    pieces[pieces_used++] = (struct iovec){payload, length};
    if (sent_seq - acked_seq > IN_FLIGHT_MAX)
        errx(1, "too much in flight");
    in_flight[sent_seq % IN_FLIGHT_MAX] =
        (struct pending){client, client->serial, request->cookie};
}

static void close_client(struct client *client)
{
    close(client->fd);
    client->fd = -1;
    client->serial = 0;
    client->out_bytes = client->in.start = client->in.end = 0;
}

/* How long the request at the start is with its payload; 0 if it is not all there yet. */
static size_t complete(const struct buffer *in, struct request *request)
{
    if (in->end - in->start < sizeof *request)
        return 0;
    memcpy(request, in->bytes + in->start, sizeof *request);
    uint32_t length = be32toh(request->length);
    if (be32toh(request->magic) != NBD_REQUEST_MAGIC || length > REQUEST_BYTES_MAX)
        errx(1, "a request that no client of the benchmark sends");
    size_t bytes = sizeof *request + (be16toh(request->type) == NBD_CMD_WRITE ? length : 0);
    return in->end - in->start < bytes ? 0 : bytes;
}

/* First what goes to the secondary, in one call; then the local file, while it travels. */
static void carry_out(struct client *client)
{
    struct buffer *in = &client->in;
    struct request request;
    size_t bytes, first = in->start;
    for (; peer_fd >= 0 && (bytes = complete(in, &request)); in->start += bytes) {
        if (be16toh(request.type) == NBD_CMD_WRITE)
            add_frame(client, FRAME_WRITE, &request, in->bytes + in->start + sizeof request,
                      be32toh(request.length));
        else if (be16toh(request.type) == NBD_CMD_FLUSH)
            add_frame(client, FRAME_FLUSH, &request, NULL, 0);
    }
    send_frames();
    in->start = first;
    for (; (bytes = complete(in, &request)); in->start += bytes) {
        uint32_t length = be32toh(request.length);
        uint64_t offset = be64toh(request.offset);
        uint16_t type = be16toh(request.type);
        if (type == NBD_CMD_WRITE) {
            write_file(in->bytes + in->start + sizeof request, length, offset);
        } else if (type == NBD_CMD_FLUSH) {
            sync_file();
        } else if (type == NBD_CMD_READ) {
            unsigned char *data = answer(client, request.cookie, length);
            if (pread(file_fd, data, length, (off_t)offset) != (ssize_t)length)
                err(1, "pread");
        } else {
            close_client(client);
            return;
        }
        if (type != NBD_CMD_READ && peer_fd < 0)
            answer(client, request.cookie, 0);
    }
    send_answers(client);
}

/* The primary: handshake, connections. */

static void option_reply(int fd, uint32_t option, uint32_t type, const void *data, uint32_t count)
{
    struct { uint64_t magic; uint32_t option, type, count; } __attribute__((packed)) head = {
        htobe64(NBD_OPTION_REPLY_MAGIC), htobe32(option), htobe32(type), htobe32(count)};
    send_bytes(fd, &head, sizeof head);
    if (count)
        send_bytes(fd, data, count);
}

/* True when the client may send requests. */
static bool shake_hands(int fd)
{
    struct { uint64_t magic, option_magic; uint16_t flags; } __attribute__((packed)) hello = {
        htobe64(NBD_MAGIC), htobe64(NBD_OPTION_MAGIC), htobe16(3)};
    struct { uint16_t type; uint64_t size; uint16_t flags; } __attribute__((packed)) info = {
        htobe16(NBD_INFO_EXPORT), htobe64(file_bytes), htobe16(EXPORT_FLAGS)};
    struct { uint64_t magic; uint32_t option, count; } __attribute__((packed)) asked;
    unsigned char data[4096];
    uint32_t flags;
    send_bytes(fd, &hello, sizeof hello);
    receive_bytes(fd, &flags, sizeof flags);
    for (;;) {
        receive_bytes(fd, &asked, sizeof asked);
        uint32_t option = be32toh(asked.option), count = be32toh(asked.count);
        if (count > sizeof data)
            errx(1, "an option of %u bytes", count);
        receive_bytes(fd, data, count);
        if (option == NBD_OPT_GO || option == NBD_OPT_INFO)
            option_reply(fd, option, NBD_REP_INFO, &info, sizeof info);
        bool known = option == NBD_OPT_GO || option == NBD_OPT_INFO || option == NBD_OPT_ABORT;
        option_reply(fd, option, known ? NBD_REP_ACK : NBD_REP_ERR_UNSUP, NULL, 0);
        if (option == NBD_OPT_GO)
            return true;
        if (option == NBD_OPT_ABORT || option == NBD_OPT_EXPORT_NAME)
            return false;
    }
}

static void accept_client(int listener)
{
    int fd = accept(listener, NULL, NULL);
    if (fd < 0)
        err(1, "accept");
    tune(fd);
    for (int i = 0; i < CLIENTS_MAX; i++) {
        struct client *client = &clients[i];
        if (client->fd >= 0)
            continue;
        if (!shake_hands(fd))
            break;
        client->fd = fd;
        client->serial = ++serials;
        if (!client->in.bytes) {
            client->in.bytes = allocate(RECEIVE_BYTES);
            client->out = allocate(ANSWER_BYTES);
        }
        return;
    }
    close(fd);
}

static void connect_peer(uint16_t port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    peer_fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(peer_fd, (struct sockaddr *)&address, sizeof address))
        err(1, "the secondary on port %u", port);
    tune(peer_fd);
}

static void serve_primary(const char *path, uint16_t peer_port)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (strlen(path) >= sizeof address.sun_path)
        errx(2, "the path of the socket is too long");
    strcpy(address.sun_path, path);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16))
        err(1, "%s", path);
    if (peer_port)
        connect_peer(peer_port);
    for (int i = 0; i < CLIENTS_MAX; i++)
        clients[i].fd = -1;
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct pollfd polled[CLIENTS_MAX + 2] = {{listener, POLLIN, 0}, {peer_fd, POLLIN, 0}};
        for (int i = 0; i < CLIENTS_MAX; i++)
            polled[i + 2] = (struct pollfd){clients[i].fd, POLLIN, 0};
        if (poll(polled, CLIENTS_MAX + 2, -1) < 0 && errno != EINTR)
            err(1, "poll");
        if (polled[1].revents)
            take_acks();
        for (int i = 0; i < CLIENTS_MAX; i++) {
            if (!polled[i + 2].revents || clients[i].fd < 0)
                continue;
            if (receive(clients[i].fd, &clients[i].in))
                carry_out(&clients[i]);
            else
                close_client(&clients[i]);
        }
        if (polled[0].revents)
            accept_client(listener);
    }
}

int main(int count, char **arguments)
{
    const char *socket_path = NULL, *file = NULL;
    uint16_t listen_port = 0, peer_port = 0;
    for (int i = 2; i < count; i++) {
        bool last = i + 1 == count;
        if (!strcmp(arguments[i], "--crc"))
            with_crc = true;
        else if (!strcmp(arguments[i], "--socket") && !last)
            socket_path = arguments[++i];
        else if (!strcmp(arguments[i], "--file") && !last)
            file = arguments[++i];
        else if (!strcmp(arguments[i], "--listen") && !last)
            listen_port = (uint16_t)atoi(arguments[++i]);
        else if (!strcmp(arguments[i], "--peer") && !last)
            peer_port = (uint16_t)atoi(arguments[++i]);
        else
            errx(2, "what is %s?", arguments[i]);
    }
    struct stat status;
    if (!file || (file_fd = open(file, O_RDWR | O_CLOEXEC)) < 0 || fstat(file_fd, &status))
        err(2, "--file %s", file ? file : "is missing");
    file_bytes = (uint64_t)status.st_size;
    if (with_crc)
        prepare_crc();
    prctl(PR_SET_PDEATHSIG, SIGKILL);  /* nothing outlives the benchmark */
    if (count > 1 && !strcmp(arguments[1], "secondary") && listen_port)
        serve_secondary(listen_port);
    else if (count > 1 && !strcmp(arguments[1], "primary") && socket_path)
        serve_primary(socket_path, peer_port);
    else
        errx(2, "say: secondary --listen PORT --file FILE, or primary --socket PATH --file FILE");
    return 0;
}
