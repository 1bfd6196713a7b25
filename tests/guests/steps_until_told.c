/* Makes a step every 20 ms, for ever, and obeys the signal that the answer to a step tells of: acknowledges it, and leaves. */
#include <time.h>

#include "durable.h"

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    failure error;
    for (unsigned long n = 1;; n++) {
        text name = text_of(format("step-%lu", n));
        bytes state = bytes_of("1");
        runtara_durable_checkpoints_saved_t saved;
        must(runtara_durable_checkpoints_save(&name, &state, &saved, &error), &error);
        if (saved.signal.is_some && saved.signal.val.kind != RUNTARA_DURABLE_TYPES_SIGNAL_KIND_RESUME) {
            must(runtara_durable_signals_acknowledge(saved.signal.val.kind, &error), &error);
            return 0;
        }
        struct timespec pause = {0, saved.found.is_some ? 0 : 20000000};
        nanosleep(&pause, NULL);
    }
}
