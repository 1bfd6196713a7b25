/* Does what its input says: a JSON list of texts, each a command and its words. A script that does not end otherwise completes with
 * {"run": …, "seen": {…}}: its run, and what each command with a name saw. A call that is not done ends the program with 1 and the
 * reason in standard error.
 *
 *   checkpoint NAME [JSON]   a step: leaves an event `body` and saves JSON (or the run), unless NAME is saved; sees what is saved, and
 *                            under "signal of NAME" the custom signal that came with it
 *   sleep MS [NAME JSON]     a durable sleep, with a checkpoint
 *   wait ID [MS]             waits for a custom signal; sees its payload, "timed out" or "interrupted"
 *   take ID                  takes a custom signal if it is there; sees its payload, or "nothing"
 *   until ID                 takes a custom signal again and again, looking for nothing else, until it is there
 *   poll                     sees the signal for the instance, or null
 *   listen                   looks for a cancel or a pause until one is there
 *   obey                     looks for a cancel or a pause until one is there, acknowledges it and leaves
 *   acknowledge KIND         acknowledges a signal, and goes on
 *   event SUBTYPE [JSON]     heartbeat     retry NAME ATTEMPT [TEXT]     log LEVEL TEXT
 *   complete [JSON]          fail TEXT     suspend
 *   print TEXT               a line to standard output
 *   pause MS                 waits without a durable call
 *   spin MS                  works without any call but for the time
 *   leave CODE               leaves without a word; after one, with this code
 *   trap
 *   on N COMMAND             a command only in run N
 *   tolerate COMMAND         sees under "error" why the call of a command was not done, and goes on
 */
#include <time.h>

#include "durable.h"

static char *seen;
static bool tolerates;

static void see(const char *name, const char *json) {
    char *before = seen;
    seen = before ? format("%s,\"%s\":%s", before, name, json) : format("\"%s\":%s", name, json);
    free(before);
}

/* Whether a call was done. One that was not ends the program, unless the script tolerates it. */
static bool done(bool done, const failure *error) {
    if (!done && tolerates) {
        see("error", json_text(line_of(error)));
        return false;
    }
    must(done, error);
    return true;
}

/* Takes the next word from a command: an empty one at its end. */
static char *word(char **rest) {
    char *start = *rest, *end = start + strcspn(start, " ");
    *rest = *end ? end + 1 : end;
    *end = '\0';
    return start;
}

static char *json_of(const bytes *given) {
    return format("%.*s", (int)given->len, (const char *)given->ptr);
}

static const char *payload_of(const runtara_durable_signals_option_bytes_t *payload) {
    return payload->is_some ? json_of(&payload->val) : "null";
}

static char *own_run(void) {
    return format("%u", runtara_durable_instance_run_number());
}

static void wait_here(long milliseconds) {
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static void checkpoint(char *rest) {
    failure error;
    char *name = word(&rest);
    text id = text_of(name);
    runtara_durable_checkpoints_saved_t saved;
    if (!done(runtara_durable_checkpoints_get(&id, &saved, &error), &error)) return;
    if (!saved.found.is_some) {
        text subtype = text_of("body");
        bytes payload = bytes_of(format("\"%s\"", name)), state = bytes_of(*rest ? rest : own_run());
        if (!done(runtara_durable_report_event(&subtype, &payload, &error), &error)) return;
        if (!done(runtara_durable_checkpoints_save(&id, &state, &saved, &error), &error)) return;
        if (!saved.found.is_some) saved.found.val = state;
    }
    see(name, json_of(&saved.found.val));
    if (!saved.custom_signal.is_some) return;
    const runtara_durable_checkpoints_option_bytes_t *payload = &saved.custom_signal.val;
    see(format("signal of %s", name), payload->is_some ? json_of(&payload->val) : "null");
}

static void sleep_durably(char *rest) {
    failure error;
    uint64_t milliseconds = strtoull(word(&rest), NULL, 10);
    runtara_durable_sleep_state_t save = {.name = text_of(word(&rest)), .state = bytes_of(rest)};
    done(runtara_durable_sleep_sleep(milliseconds, save.name.len ? &save : NULL, &error), &error);
}

static void wait_for_signal(char *rest) {
    failure error;
    char *name = word(&rest);
    text id = text_of(name);
    uint64_t milliseconds = strtoull(rest, NULL, 10);
    runtara_durable_signals_waited_t waited;
    if (!done(runtara_durable_signals_wait(&id, *rest ? &milliseconds : NULL, &waited, &error), &error)) return;
    switch (waited.tag) {
    case RUNTARA_DURABLE_SIGNALS_WAITED_CAME: see(name, payload_of(&waited.val.came)); break;
    case RUNTARA_DURABLE_SIGNALS_WAITED_TIMED_OUT: see(name, "\"timed out\""); break;
    default: see(name, "\"interrupted\"");
    }
}

static void take_signal(char *rest) {
    failure error;
    text id = text_of(rest);
    runtara_durable_signals_option_option_bytes_t taken;
    if (!done(runtara_durable_signals_take(&id, &taken, &error), &error)) return;
    see(rest, taken.is_some ? payload_of(&taken.val) : "\"nothing\"");
}

static void until_signal(char *rest) {
    failure error;
    text id = text_of(rest);
    runtara_durable_signals_option_option_bytes_t taken;
    for (;; wait_here(20)) {
        must(runtara_durable_signals_take(&id, &taken, &error), &error);
        if (taken.is_some) return;
    }
}

static const char *const kinds[] = {"cancel", "pause", "resume"};

static void poll_once(char *rest) {
    failure error;
    runtara_durable_signals_option_signal_t signal;
    (void)rest;
    if (!done(runtara_durable_signals_poll(&signal, &error), &error)) return;
    see("poll", signal.is_some ? format("\"%s\"", kinds[signal.val.kind]) : "null");
}

static void acknowledge(char *rest) {
    failure error;
    for (uint8_t kind = 0; kind < 3; kind++)
        if (strcmp(rest, kinds[kind]) == 0) done(runtara_durable_signals_acknowledge(kind, &error), &error);
}

/* The kind of the cancel or the pause that is there at last. */
static uint8_t awaited_order(void) {
    failure error;
    runtara_durable_signals_option_signal_t signal;
    for (;; wait_here(20)) {
        must(runtara_durable_signals_poll(&signal, &error), &error);
        if (signal.is_some && signal.val.kind != RUNTARA_DURABLE_TYPES_SIGNAL_KIND_RESUME) return signal.val.kind;
    }
}

static void listen(char *rest) {
    (void)rest;
    awaited_order();
}

static void obey(char *rest) {
    failure error;
    (void)rest;
    must(runtara_durable_signals_acknowledge(awaited_order(), &error), &error);
    exit(0);
}

static void event(char *rest) {
    failure error;
    text subtype = text_of(word(&rest));
    bytes payload = bytes_of(rest);
    done(runtara_durable_report_event(&subtype, *rest ? &payload : NULL, &error), &error);
}

static void heartbeat(char *rest) {
    failure error;
    (void)rest;
    done(runtara_durable_report_heartbeat(&error), &error);
}

static void retry(char *rest) {
    failure error;
    text name = text_of(word(&rest));
    uint32_t attempt = (uint32_t)strtoul(word(&rest), NULL, 10);
    text reason = text_of(rest);
    done(runtara_durable_report_retry(&name, attempt, *rest ? &reason : NULL, &error), &error);
}

static void log_line(char *rest) {
    static const char *const levels[] = {"debug", "info", "warn", "error"};
    char *level = word(&rest);
    text message = text_of(rest);
    for (uint8_t n = 0; n < 4; n++)
        if (strcmp(level, levels[n]) == 0) runtara_durable_report_log(n, &message);
}

static void complete(char *rest) {
    failure error;
    bytes output = bytes_of(rest);
    done(runtara_durable_outcome_complete(*rest ? &output : NULL, &error), &error);
}

static void fail(char *rest) {
    failure error;
    text reason = text_of(rest);
    done(runtara_durable_outcome_fail(&reason, &error), &error);
}

static void suspend(char *rest) {
    failure error;
    (void)rest;
    done(runtara_durable_outcome_suspend(&error), &error);
    exit(0);
}

static void print(char *rest) {
    puts(rest);
    fflush(stdout);
}

static void pause_here(char *rest) {
    wait_here(atol(rest));
}

static void spin(char *rest) {
    struct timespec start, now;
    long milliseconds = atol(rest);
    clock_gettime(CLOCK_MONOTONIC, &start);
    do clock_gettime(CLOCK_MONOTONIC, &now);
    while ((now.tv_sec - start.tv_sec) * 1000 + (now.tv_nsec - start.tv_nsec) / 1000000 < milliseconds);
}

static void leave(char *rest) {
    exit(atoi(rest));
}

static void trap(char *rest) {
    (void)rest;
    __builtin_trap();
}

static void command(char *line);

static void on_run(char *rest) {
    if (strtoul(word(&rest), NULL, 10) == runtara_durable_instance_run_number()) command(rest);
}

static void tolerate(char *rest) {
    tolerates = true;
    command(rest);
    tolerates = false;
}

static void command(char *line) {
    static const struct {
        const char *name;
        void (*act)(char *rest);
    } table[] = {
        {"checkpoint", checkpoint}, {"sleep", sleep_durably}, {"wait", wait_for_signal}, {"take", take_signal},
        {"until", until_signal}, {"listen", listen},
        {"poll", poll_once}, {"obey", obey}, {"acknowledge", acknowledge}, {"event", event}, {"heartbeat", heartbeat},
        {"retry", retry}, {"log", log_line}, {"complete", complete}, {"fail", fail}, {"suspend", suspend}, {"print", print},
        {"pause", pause_here}, {"spin", spin}, {"leave", leave}, {"trap", trap}, {"on", on_run}, {"tolerate", tolerate},
    };
    char *name = word(&line);
    for (size_t n = 0; n < sizeof table / sizeof *table; n++)
        if (strcmp(name, table[n].name) == 0) return table[n].act(line);
    fprintf(stderr, "no such command: %s\n", name);
    exit(2);
}

/* The next text of a JSON list, without its escapes; there are no others in scripts than \" and \\. */
static char *next_command(const char **json, const char *end) {
    while (*json < end && **json != '"') ++*json;
    if (*json >= end) return NULL;
    char *made = malloc((size_t)(end - *json)), *to = made;
    for (++*json; *json < end && **json != '"'; ++*json) {
        if (**json == '\\') ++*json;
        *to++ = **json;
    }
    ++*json;
    *to = '\0';
    return made;
}

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    failure error;
    runtara_durable_instance_option_bytes_t input;
    must(runtara_durable_instance_input(&input, &error), &error);
    const char *script = input.is_some ? (const char *)input.val.ptr : "", *end = script + (input.is_some ? input.val.len : 0);
    for (char *line; (line = next_command(&script, end)) != NULL;) command(line);
    complete(format("{\"run\":%s,\"seen\":{%s}}", own_run(), seen ? seen : ""));
    return 0;
}
