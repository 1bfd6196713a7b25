/* A workflow of as many steps as its argument says, each with a body that is done once: `step-1` saves 1, `step-2` saves 2, and so on.
 * A second argument is how many milliseconds a body works. It completes with the sum of what was saved, its run, and how many bodies
 * this run did. Each body leaves an event `body` with the name of its step, so that others can count. */
#include <time.h>

#include "durable.h"

static unsigned bodies;

static void work(long milliseconds) {
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static long step(const char *name, long value, long milliseconds) {
    failure error;
    text id = text_of(name);
    runtara_durable_checkpoints_saved_t saved;
    must(runtara_durable_checkpoints_get(&id, &saved, &error), &error);
    if (saved.found.is_some) return strtol(format("%.*s", (int)saved.found.val.len, (char *)saved.found.val.ptr), NULL, 10);

    bytes payload = bytes_of(format("\"%s\"", name));
    text subtype = text_of("body");
    must(runtara_durable_report_event(&subtype, &payload, &error), &error);
    bodies++;
    work(milliseconds);

    bytes state = bytes_of(format("%ld", value));
    must(runtara_durable_checkpoints_save(&id, &state, &saved, &error), &error);
    return value;
}

int main(int argc, char **argv) {
    long steps = argc > 1 ? atol(argv[1]) : 3, milliseconds = argc > 2 ? atol(argv[2]) : 0, sum = 0;
    for (long n = 1; n <= steps; n++) sum += step(format("step-%ld", n), n, milliseconds);
    failure error;
    bytes output = bytes_of(format("{\"sum\":%ld,\"run\":%u,\"bodies\":%u}", sum, runtara_durable_instance_run_number(), bodies));
    must(runtara_durable_outcome_complete(&output, &error), &error);
    return 0;
}
