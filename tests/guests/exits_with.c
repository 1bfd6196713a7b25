/* Leaves with the code that its argument names: writes JSON to standard output, and why to standard error if it is not 0. */
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv) {
    int code = argc > 1 ? atoi(argv[1]) : 0;
    printf("{\"code\":%d}\n", code);
    if (code != 0) fprintf(stderr, "leaving with %d\n", code);
    return code;
}
