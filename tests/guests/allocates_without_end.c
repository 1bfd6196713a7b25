/* Takes memory and uses it until there is no more, and then traps, as most programs do. */
#include <stdlib.h>
#include <string.h>

enum { STEP = 1 << 20 };

int main(void) {
    for (;;) {
        void *taken = malloc(STEP);
        if (!taken) abort();
        memset(taken, 1, STEP);
        /* Keeps the compiler from leaving it out. */
        __asm__ volatile("" : : "r"(taken) : "memory");
    }
}
