/* Traps in the way that its argument names, in a function whose name a backtrace can tell. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

__attribute__((noinline)) static int innermost_function(const char *way) {
    if (strcmp(way, "unreachable") == 0) __builtin_trap();
    if (strcmp(way, "out-of-bounds") == 0) return *(volatile int *)(uintptr_t)0xfffffff0;
    if (strcmp(way, "division") == 0) {
        volatile int one = 1, zero = 0;
        return one / zero;
    }
    fprintf(stderr, "no such way: %s\n", way);
    return 2;
}

int main(int argc, char **argv) {
    fputs("about to trap\n", stderr);
    return innermost_function(argc > 1 ? argv[1] : "unreachable");
}
