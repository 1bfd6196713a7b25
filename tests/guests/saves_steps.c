/* Saves as many steps as its argument says, 96 bytes each, and completes. */
#include "durable.h"

int main(int argc, char **argv) {
    long steps = argc > 1 ? atol(argv[1]) : 1;
    char state[97];
    memset(state, 'Z', 96);
    state[96] = '\0';
    failure error;
    for (long n = 1; n <= steps; n++) {
        char name[32];
        snprintf(name, sizeof name, "step-%ld", n);
        text id = text_of(name);
        bytes value = bytes_of(state);
        runtara_durable_checkpoints_saved_t saved;
        must(runtara_durable_checkpoints_save(&id, &value, &saved, &error), &error);
        runtara_durable_checkpoints_saved_free(&saved);
    }
    must(runtara_durable_outcome_complete(NULL, &error), &error);
    return 0;
}
