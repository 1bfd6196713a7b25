/* Makes one call that no sane program makes, named by its argument, and completes with how it was answered. Lengths that are
 * only claimed are of memory that the guest does not have. */
#include "durable.h"

enum { LONG = 10 << 20 };

/* 10 MB that are there. */
static text long_text(void) {
    uint8_t *made = malloc(LONG);
    if (!made) abort();
    memset(made, 'n', LONG);
    return (text){made, LONG};
}

/* 1 GiB that is not. */
static text claimed(void) {
    static uint8_t one;
    return (text){&one, 1 << 30};
}

static text not_utf8(void) {
    static uint8_t odd[] = {0xc3, 0x28, 0xff};
    return (text){odd, sizeof odd};
}

static bool save(text name, text state, failure *error) {
    runtara_durable_checkpoints_saved_t saved;
    bytes given = {state.ptr, state.len};
    return runtara_durable_checkpoints_save(&name, &given, &saved, error);
}

static bool event(text subtype, text payload, failure *error) {
    bytes given = {payload.ptr, payload.len};
    return runtara_durable_report_event(&subtype, &given, error);
}

static bool log_line(text message) {
    runtara_durable_report_log(RUNTARA_DURABLE_REPORT_LEVEL_INFO, &message);
    return true;
}

static bool complete(text output, failure *error) {
    bytes given = {output.ptr, output.len};
    return runtara_durable_outcome_complete(&given, error);
}

static bool wait_for(text id, failure *error) {
    uint64_t milliseconds = 1;
    runtara_durable_signals_waited_t waited;
    return runtara_durable_signals_wait(&id, &milliseconds, &waited, error);
}

static bool call(const char *way, failure *error) {
    text one = text_of("1"), name = text_of("name"), none = text_of("");
    if (strcmp(way, "long-name") == 0) return save(long_text(), one, error);
    if (strcmp(way, "claimed-name") == 0) return save(claimed(), one, error);
    if (strcmp(way, "odd-name") == 0) return save(not_utf8(), one, error);
    if (strcmp(way, "empty-name") == 0) return save(none, one, error);
    if (strcmp(way, "empty-state") == 0) return save(name, none, error);
    if (strcmp(way, "claimed-state") == 0) return save(name, claimed(), error);
    if (strcmp(way, "long-subtype") == 0) return event(long_text(), one, error);
    if (strcmp(way, "servers-subtype") == 0) return event(text_of("runtara.crashed"), one, error);
    if (strcmp(way, "odd-payload") == 0) return event(name, not_utf8(), error);
    if (strcmp(way, "long-signal") == 0) return wait_for(long_text(), error);
    if (strcmp(way, "empty-signal") == 0) return wait_for(none, error);
    if (strcmp(way, "odd-output") == 0) return complete(text_of("{ not JSON"), error);
    if (strcmp(way, "claimed-error") == 0) {
        text told = claimed();
        return runtara_durable_outcome_fail(&told, error);
    }
    if (strcmp(way, "long-log") == 0) return log_line(long_text());
    if (strcmp(way, "endless-sleep") == 0) return runtara_durable_sleep_sleep(UINT64_MAX, NULL, error);
    fprintf(stderr, "no such way: %s\n", way);
    exit(2);
}

int main(int argc, char **argv) {
    failure error;
    bool done = call(argc > 1 ? argv[1] : "", &error);
    bytes output = bytes_of(json_text(done ? "done" : line_of(&error)));
    must(runtara_durable_outcome_complete(&output, &error), &error);
    return 0;
}
