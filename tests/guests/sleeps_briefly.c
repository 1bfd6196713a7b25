/* Sleeps a hundred times, a millisecond each. */
#include <time.h>

int main(void) {
    for (int n = 0; n < 100; n++) {
        struct timespec millisecond = {0, 1000000};
        nanosleep(&millisecond, NULL);
    }
    return 0;
}
