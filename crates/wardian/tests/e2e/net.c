/* Speaks over networks, for tests: net tcp|udp ADDRESS PORT, net serve NAME PORT, net spoof SOURCE ADDRESS PORT,
 * net arp LINK ADDRESS, net nd LINK KIND SOURCE TARGET (KIND: ns, na, ra, redirect), net log GROUP. A question prints
 * "ok ANSWER", or why there was none. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netinet/icmp6.h>
#include <netinet/ip.h>
#include <netinet/ip6.h>
#include <netinet/udp.h>
#include <linux/if_packet.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_log.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* Milliseconds for an answer. */
enum { PATIENCE = 2500, PAUSE = 100 };

static long now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static socklen_t address(const char *text, const char *port, struct sockaddr_storage *to) {
    struct sockaddr_in *four = (void *)to;
    struct sockaddr_in6 *six = (void *)to;
    memset(to, 0, sizeof *to);
    if (inet_pton(AF_INET, text, &four->sin_addr) == 1) {
        four->sin_family = AF_INET;
        four->sin_port = htons(atoi(port));
        return sizeof *four;
    }
    if (inet_pton(AF_INET6, text, &six->sin6_addr) != 1)
        exit(2);
    six->sin6_family = AF_INET6;
    six->sin6_port = htons(atoi(port));
    return sizeof *six;
}

static int fail(int error) {
    printf("%s\n", error ? strerrorname_np(error) : "timeout");
    return 1;
}

static int ask(int kind, char **argv) {
    struct sockaddr_storage to;
    socklen_t length = address(argv[0], argv[1], &to);
    long end = now() + PATIENCE;
    char answer[300];
    int last = 0;
    while (now() < end) {
        int s = socket(to.ss_family, kind | SOCK_NONBLOCK, 0), error = 0, got;
        socklen_t size = sizeof error;
        struct pollfd one = {s, POLLOUT, 0};
        if (s < 0)
            return fail(errno);
        if (connect(s, (void *)&to, length) < 0 && errno != EINPROGRESS)
            return fail(errno);
        if (kind == SOCK_STREAM && poll(&one, 1, end - now()) == 0)
            return fail(0);
        getsockopt(s, SOL_SOCKET, SO_ERROR, &error, &size);
        if (!error && kind == SOCK_DGRAM && send(s, "asked", 5, 0) < 0)
            error = errno;
        one.events = POLLIN;
        if (!error && poll(&one, 1, kind == SOCK_STREAM ? end - now() : PAUSE * 3) > 0) {
            got = recv(s, answer, sizeof answer, 0);
            if (got > 0) {
                printf("ok %.*s\n", got, answer);
                return 0;
            }
            error = got < 0 ? errno : EPIPE;
        }
        close(s);
        /* Whoever is to listen may not do so yet. */
        if (error && (error != ECONNREFUSED || now() + PAUSE >= end))
            return fail(error);
        last = error ? error : last;
        usleep(PAUSE * 1000);
    }
    return fail(last);
}

static int answer_text(const char *name, struct sockaddr_in6 *from, char *text, int room) {
    char peer[64];
    const char *plain = inet_ntop(AF_INET6, &from->sin6_addr, peer, sizeof peer);
    if (strncmp(plain, "::ffff:", 7) == 0)
        plain += 7;
    return snprintf(text, room, "%s from %s", name, plain);
}

static int serve(char **argv) {
    struct sockaddr_storage any;
    socklen_t length = address("::", argv[1], &any);
    int tcp = socket(AF_INET6, SOCK_STREAM, 0), udp = socket(AF_INET6, SOCK_DGRAM, 0), yes = 1;
    struct pollfd both[2] = {{tcp, POLLIN, 0}, {udp, POLLIN, 0}};
    setsockopt(tcp, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    setsockopt(udp, IPPROTO_IPV6, IPV6_RECVPKTINFO, &yes, sizeof yes);
    if (bind(tcp, (void *)&any, length) || bind(udp, (void *)&any, length) || listen(tcp, 64))
        return fail(errno);
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        struct sockaddr_in6 from;
        char text[200], control[200];
        struct iovec part = {text, sizeof text};
        struct msghdr message = {&from, sizeof from, &part, 1, control, sizeof control, 0};
        poll(both, 2, -1);
        if (both[0].revents) {
            socklen_t size = sizeof from;
            int s = accept(tcp, (void *)&from, &size);
            send(s, text, answer_text(argv[0], &from, text, sizeof text), MSG_NOSIGNAL);
            close(s);
        }
        /* The answer comes from the address that was asked. */
        if (both[1].revents && recvmsg(udp, &message, 0) > 0) {
            part.iov_len = answer_text(argv[0], &from, text, sizeof text);
            sendmsg(udp, &message, 0);
        }
    }
}

/* The checksum of a message after an IPv6 header (RFC 8200, 8.1). */
static unsigned short checksum(const void *header, const void *message, int size) {
    const unsigned char *ip = header, *rest = message;
    unsigned long sum = ip[6] + size;
    int i;
    /* Both addresses. */
    for (i = 8; i < 40; i += 2)
        sum += ip[i] << 8 | ip[i + 1];
    for (i = 0; i < size; i += 2)
        sum += rest[i] << 8 | (i + 1 < size ? rest[i + 1] : 0);
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return htons(~sum & 0xffff);
}

static int spoof6(char **argv) {
    struct { struct ip6_hdr ip; struct udphdr udp; char text[7]; } __attribute__((packed)) packet = {0};
    struct sockaddr_storage to;
    /* A raw socket of IPv6 takes a protocol for a port. */
    socklen_t length = address(argv[1], "0", &to);
    int s = socket(AF_INET6, SOCK_RAW, IPPROTO_RAW), size = sizeof packet - sizeof packet.ip, i;
    if (s < 0)
        return fail(errno);
    packet.ip.ip6_flow = htonl(6 << 28);
    packet.ip.ip6_plen = htons(size);
    packet.ip.ip6_nxt = IPPROTO_UDP;
    packet.ip.ip6_hlim = 64;
    inet_pton(AF_INET6, argv[0], &packet.ip.ip6_src);
    inet_pton(AF_INET6, argv[1], &packet.ip.ip6_dst);
    packet.udp = (struct udphdr){.source = htons(5555), .dest = htons(atoi(argv[2])), .len = htons(size)};
    memcpy(packet.text, "spoofed", 7);
    packet.udp.check = checksum(&packet, &packet.udp, size);
    for (i = 0; i < 5; i++)
        if (sendto(s, &packet, sizeof packet, 0, (void *)&to, length) < 0)
            return fail(errno);
    printf("ok sent\n");
    return 0;
}

/* A datagram from somebody else's address. */
static int spoof(char **argv) {
    struct { struct iphdr ip; struct udphdr udp; char text[7]; } __attribute__((packed)) packet = {0};
    struct sockaddr_storage to;
    socklen_t length = address(argv[1], argv[2], &to);
    int s, i;
    if (to.ss_family == AF_INET6)
        return spoof6(argv);
    s = socket(AF_INET, SOCK_RAW, IPPROTO_RAW);
    if (s < 0)
        return fail(errno);
    packet.ip = (struct iphdr){.version = 4, .ihl = 5, .ttl = 64, .protocol = IPPROTO_UDP,
                               .tot_len = htons(sizeof packet), .saddr = inet_addr(argv[0]),
                               .daddr = inet_addr(argv[1])};
    packet.udp = (struct udphdr){.source = htons(5555), .dest = htons(atoi(argv[2])),
                                 .len = htons(sizeof packet - sizeof packet.ip)};
    memcpy(packet.text, "spoofed", 7);
    for (i = 0; i < 5; i++)
        if (sendto(s, &packet, sizeof packet, 0, (void *)&to, length) < 0)
            return fail(errno);
    printf("ok sent\n");
    return 0;
}

/* Says to all neighbours that an address is here. */
static int arp(char **argv) {
    struct ifreq link = {0};
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_protocol = htons(0x806), .sll_halen = 6};
    unsigned char frame[28] = {0, 1, 8, 0, 6, 4, 0, 2};
    int s = socket(AF_PACKET, SOCK_DGRAM, htons(0x806)), i;
    if (s < 0)
        return fail(errno);
    strncpy(link.ifr_name, argv[0], IFNAMSIZ - 1);
    to.sll_ifindex = if_nametoindex(argv[0]);
    if (ioctl(s, SIOCGIFHWADDR, &link) < 0)
        return fail(errno);
    memcpy(frame + 8, link.ifr_hwaddr.sa_data, 6);
    inet_pton(AF_INET, argv[1], frame + 14);
    memset(frame + 18, 0xff, 6);
    inet_pton(AF_INET, argv[1], frame + 24);
    memset(to.sll_addr, 0xff, 6);
    for (i = 0; i < 20; i++) {
        if (sendto(s, frame, sizeof frame, 0, (void *)&to, sizeof to) < 0)
            return fail(errno);
        frame[7] = 1 + i % 2;
        usleep(20000);
    }
    printf("ok sent\n");
    return 0;
}

/* Says to all nodes of a link, in a message of neighbour discovery (RFC 4861), that the target is here: as somebody who
 * asks (ns) or answers (na), as a router (ra; the target is a prefix of 64 bits for addresses), or that it is
 * reached through here (redirect). */
static int nd(char **argv) {
    struct { struct ip6_hdr ip; unsigned char text[120]; } __attribute__((packed)) packet = {0};
    struct ifreq link = {0};
    struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_protocol = htons(0x86dd), .sll_halen = 6,
                             .sll_addr = {0x33, 0x33, 0, 0, 0, 1}};
    unsigned char *text = packet.text, *option = text + 24;
    int s = socket(AF_PACKET, SOCK_DGRAM, htons(0x86dd)), size, i;
    struct in6_addr target;
    if (s < 0)
        return fail(errno);
    strncpy(link.ifr_name, argv[0], IFNAMSIZ - 1);
    to.sll_ifindex = if_nametoindex(argv[0]);
    if (ioctl(s, SIOCGIFHWADDR, &link) < 0)
        return fail(errno);
    packet.ip.ip6_flow = htonl(6 << 28);
    packet.ip.ip6_nxt = IPPROTO_ICMPV6;
    packet.ip.ip6_hlim = 255;
    if (inet_pton(AF_INET6, argv[2], &packet.ip.ip6_src) != 1 || inet_pton(AF_INET6, argv[3], &target) != 1)
        return 2;
    inet_pton(AF_INET6, "ff02::1", &packet.ip.ip6_dst);
    memcpy(text + 8, &target, 16);
    if (!strcmp(argv[1], "ns")) {
        text[0] = ND_NEIGHBOR_SOLICIT;
        option[0] = ND_OPT_SOURCE_LINKADDR;
    } else if (!strcmp(argv[1], "na")) {
        text[0] = ND_NEIGHBOR_ADVERT;
        text[4] = 0xa0; /* a router's, and to override what is known */
        option[0] = ND_OPT_TARGET_LINKADDR;
    } else if (!strcmp(argv[1], "redirect")) {
        text[0] = ND_REDIRECT;
        memcpy(text + 24, "\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x08", 16);
        option = text + 40;
        option[0] = ND_OPT_TARGET_LINKADDR;
    } else {
        text[0] = ND_ROUTER_ADVERT;
        text[4] = 64;
        text[6] = text[7] = 100; /* a router for so many seconds, times 257 */
        memset(text + 8, 0, 8);
        /* A prefix, on this link and for addresses, for a long time. */
        memcpy(text + 16, "\x03\x04\x40\xc0\0\0\x0e\x10\0\0\x0e\x10\0\0\0\0", 16);
        memcpy(text + 32, &target, 16);
        option = text + 48;
        option[0] = ND_OPT_SOURCE_LINKADDR;
    }
    option[1] = 1;
    memcpy(option + 2, link.ifr_hwaddr.sa_data, 6);
    size = option + 8 - text;
    packet.ip.ip6_plen = htons(size);
    ((struct icmp6_hdr *)text)->icmp6_cksum = checksum(&packet, text, size);
    for (i = 0; i < 5; i++) {
        if (sendto(s, &packet, sizeof packet.ip + size, 0, (void *)&to, sizeof to) < 0)
            return fail(errno);
        usleep(20000);
    }
    printf("ok sent\n");
    return 0;
}

/* Prints the prefix of each packet that is logged to a group. */
static int logged(char **argv) {
    struct {
        struct nlmsghdr header;
        struct nfgenmsg gen;
        struct nlattr attr;
        struct nfulnl_msg_config_cmd command;
    } __attribute__((packed)) bind = {
        {sizeof bind, NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_CONFIG, NLM_F_REQUEST | NLM_F_ACK, 1, 0},
        {AF_UNSPEC, NFNETLINK_V0, htons(atoi(argv[0]))},
        {NLA_HDRLEN + 1, NFULA_CFG_CMD},
        {NFULNL_CFG_CMD_BIND},
    };
    struct {
        struct nlmsghdr header;
        struct nfgenmsg gen;
        struct nlattr attr;
        struct nfulnl_msg_config_mode mode;
        char pad[2];
    } __attribute__((packed)) mode = {
        {sizeof mode, NFNL_SUBSYS_ULOG << 8 | NFULNL_MSG_CONFIG, NLM_F_REQUEST | NLM_F_ACK, 2, 0},
        {AF_UNSPEC, NFNETLINK_V0, htons(atoi(argv[0]))},
        {NLA_HDRLEN + sizeof mode.mode, NFULA_CFG_MODE},
        {htonl(100), NFULNL_COPY_PACKET, 0},
        {0},
    };
    static char got[65536] __attribute__((aligned(8)));
    int s = socket(AF_NETLINK, SOCK_RAW, NETLINK_NETFILTER), size, acks = 0;
    char padded[32] = {0};
    memcpy(padded, &bind, sizeof bind);
    ((struct nlmsghdr *)padded)->nlmsg_len = NLMSG_ALIGN(sizeof bind);
    if (send(s, padded, NLMSG_ALIGN(sizeof bind), 0) < 0 || send(s, &mode, sizeof mode, 0) < 0)
        return fail(errno);
    while ((size = recv(s, got, sizeof got, 0)) > 0) {
        struct nlmsghdr *one = (void *)got;
        for (; NLMSG_OK(one, (unsigned)size); one = NLMSG_NEXT(one, size)) {
            if (one->nlmsg_type == NLMSG_ERROR) {
                int error = ((struct nlmsgerr *)NLMSG_DATA(one))->error;
                if (error)
                    return fail(-error);
                if (++acks == 2)
                    printf("ready\n");
                continue;
            }
            char *at = (char *)NLMSG_DATA(one) + sizeof(struct nfgenmsg);
            while (at + NLA_HDRLEN <= (char *)one + one->nlmsg_len) {
                struct nlattr *attr = (void *)at;
                if ((attr->nla_type & NLA_TYPE_MASK) == NFULA_PREFIX)
                    printf("%s\n", at + NLA_HDRLEN);
                if (attr->nla_len < NLA_HDRLEN)
                    break;
                at += NLA_ALIGN(attr->nla_len);
            }
        }
        fflush(stdout);
    }
    return fail(errno);
}

int main(int argc, char **argv) {
    if (argc == 4 && !strcmp(argv[1], "tcp"))
        return ask(SOCK_STREAM, argv + 2);
    if (argc == 4 && !strcmp(argv[1], "udp"))
        return ask(SOCK_DGRAM, argv + 2);
    if (argc == 4 && !strcmp(argv[1], "serve"))
        return serve(argv + 2);
    if (argc == 5 && !strcmp(argv[1], "spoof"))
        return spoof(argv + 2);
    if (argc == 4 && !strcmp(argv[1], "arp"))
        return arp(argv + 2);
    if (argc == 6 && !strcmp(argv[1], "nd"))
        return nd(argv + 2);
    if (argc == 3 && !strcmp(argv[1], "log"))
        return logged(argv + 2);
    return 2;
}
