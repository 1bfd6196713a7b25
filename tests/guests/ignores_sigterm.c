/* Says `ready` and lives on, whatever asks it to leave. It could be told: it imports the signals, and asks for none. */
#include <time.h>

#include "durable.h"

int main(int argc, char **argv) {
    (void)argv;
    failure error;
    runtara_durable_signals_option_signal_t signal;
    /* Never, but the linker cannot know. */
    if (argc > 1000) must(runtara_durable_signals_poll(&signal, &error), &error);
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct timespec hour = {3600, 0};
        nanosleep(&hour, NULL);
    }
}
