/* Sleeps until the time that its argument tells, in milliseconds since 1970, and completes with the time at which it went on. */
#include <time.h>

#include "durable.h"

static long long milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

int main(int argc, char **argv) {
    long long until = argc > 1 ? atoll(argv[1]) : 0, left = until - milliseconds();
    failure error;
    runtara_durable_sleep_state_t state = {text_of("slept"), bytes_of("1")};
    must(runtara_durable_sleep_sleep(left > 0 ? left : 0, &state, &error), &error);
    bytes went_on = bytes_of(format("%lld", milliseconds()));
    must(runtara_durable_outcome_complete(&went_on, &error), &error);
    return 0;
}
