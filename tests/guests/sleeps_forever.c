/* Does nothing, and could not be told anything. */
#include <time.h>

int main(void) {
    for (;;) {
        struct timespec hour = {3600, 0};
        nanosleep(&hour, NULL);
    }
}
