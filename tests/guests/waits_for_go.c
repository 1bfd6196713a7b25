/* Waits for the signal `go`, and completes. */
#include "durable.h"

int main(void) {
    failure error;
    text id = text_of("go");
    runtara_durable_signals_waited_t waited;
    must(runtara_durable_signals_wait(&id, NULL, &waited, &error), &error);
    must(runtara_durable_outcome_complete(NULL, &error), &error);
    return 0;
}
