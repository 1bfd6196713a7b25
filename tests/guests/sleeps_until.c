/* Sleeps until the time that its argument tells, in milliseconds since 1970, and completes. */
#include <time.h>

#include "durable.h"

int main(int argc, char **argv) {
    long long until = argc > 1 ? atoll(argv[1]) : 0;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    long long left = until - (now.tv_sec * 1000LL + now.tv_nsec / 1000000);
    failure error;
    runtara_durable_sleep_state_t state = {text_of("slept"), bytes_of("1")};
    must(runtara_durable_sleep_sleep(left > 0 ? left : 0, &state, &error), &error);
    must(runtara_durable_outcome_complete(NULL, &error), &error);
    return 0;
}
