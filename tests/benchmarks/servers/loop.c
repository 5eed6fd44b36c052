/* What one writes by hand in C: a listener, so many forks, a blocking accept in each. Prints its port. */
#include <arpa/inet.h>
#include <ctype.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

int main(int count, char **argv) {
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof address;
    if (count != 2 || bind(listener, (struct sockaddr *)&address, size) || listen(listener, 1024))
        return 1;
    getsockname(listener, (struct sockaddr *)&address, &size);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    for (int workers = atoi(argv[1]); workers > 0; workers--) {
        if (fork())
            continue;
        for (;;) {
            char line[1024];
            int connection = accept(listener, NULL, NULL);
            ssize_t length = recv(connection, line, sizeof line, 0);
            for (ssize_t at = 0; at < length; at++)
                line[at] = toupper(line[at]);
            if (length > 0)
                send(connection, line, length, 0);
            close(connection);
        }
    }
    wait(NULL);
}
