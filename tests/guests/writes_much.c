/* Writes as many MiB to standard output as its argument says, and then a line to standard error. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char block[1 << 16];

int main(int argc, char **argv) {
    long mebibytes = argc > 1 ? atol(argv[1]) : 0;
    memset(block, 'x', sizeof block);
    for (long n = 0; n < mebibytes * 16; n++) {
        size_t done = 0;
        while (done < sizeof block) {
            ssize_t written = write(1, block + done, sizeof block - done);
            if (written <= 0) {
                perror("write");
                return 1;
            }
            done += (size_t)written;
        }
    }
    fputs("all written\n", stderr);
    return 0;
}
