/* Waits for the signal `go`, for as many milliseconds as its argument says at most, and completes. */
#include "durable.h"

int main(int argc, char **argv) {
    uint64_t milliseconds = argc > 1 ? strtoull(argv[1], NULL, 10) : 0;
    failure error;
    text id = text_of("go");
    runtara_durable_signals_waited_t waited;
    must(runtara_durable_signals_wait(&id, argc > 1 ? &milliseconds : NULL, &waited, &error), &error);
    must(runtara_durable_outcome_complete(NULL, &error), &error);
    return 0;
}
