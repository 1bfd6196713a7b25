/* Tries to reach addresses: reach <protocol> <device or -> <address> <port> ... Says for each what it was told, or what went wrong. */
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static const char *reach(const char *protocol, const char *device, const char *address, int port) {
    static char told[64];
    int udp = !strcmp(protocol, "udp");
    int six = strchr(address, ':') != NULL;
    int s = socket(six ? AF_INET6 : AF_INET, udp ? SOCK_DGRAM : SOCK_STREAM, 0);
    struct timeval patience = {0, 300000};
    setsockopt(s, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(s, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    if (strcmp(device, "-") && setsockopt(s, SOL_SOCKET, SO_BINDTODEVICE, device, strlen(device)))
        return "no such device";
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    struct sockaddr_in6 to6 = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    inet_pton(six ? AF_INET6 : AF_INET, address, six ? (void *)&to6.sin6_addr : (void *)&to.sin_addr);
    /* Who is frozen and thawed is interrupted, and a connection that is asked for again says how it is with it. */
    int failed, tries = 10;
    do
        failed = six ? connect(s, (struct sockaddr *)&to6, sizeof to6) : connect(s, (struct sockaddr *)&to, sizeof to);
    while (failed && (errno == EINTR || errno == EALREADY) && tries--);
    if (failed)
        return strerror(errno);
    if (udp && send(s, "hello", 5, 0) != 5)
        return strerror(errno);
    ssize_t length;
    do
        length = recv(s, told, sizeof told - 1, 0);
    while (length < 0 && errno == EINTR && tries--);
    close(s);
    if (length < 0)
        return strerror(errno);
    told[length] = 0;
    told[strcspn(told, "\n")] = 0;
    return told;
}

int main(int argc, char **argv) {
    for (int i = 1; i + 3 < argc; i += 4)
        printf("%s %s %s %s: %s\n", argv[i], argv[i + 1], argv[i + 2], argv[i + 3],
               reach(argv[i], argv[i + 1], argv[i + 2], atoi(argv[i + 3])));
    return 0;
}
