/* Plays the script of `tests/programs/src/script.rs`, as the program of the same name does over HTTP: with the same actions, the same output,
 * and the same end when a call is not done. A cancel is acknowledged and left with 1, a pause with 0.
 *
 * What a guest cannot do is a failure that says so: files (`effects_file`, `touch`, `until_file`), death by a signal (`die`), calls over
 * HTTP (`call`, `status_of`), `suspend_until` and `branches`. In place of `effects_file` a script may have `effects_event`, the subtype of an
 * event that is left for each effect, with `"<id> <run>"` for its payload. With `ledger_on_stderr` it writes to its standard error what the
 * program `keeps_a_ledger` writes to its ledger, each line between `ledger ` and ` .`, with the time since 1970 and a random number in place
 * of its process. */
#include <time.h>
#include <unistd.h>

#include "durable.h"
#include "json.h"

enum { POLL_MS = 50, SIGN_OF_LIFE_MS = 100 };

static uint32_t run;
static const char *effects_event;
/* Of this guest, if it is to write a ledger. */
static long number_in_ledger;

/* What a checkpoint or a signal gave. */
static struct note {
    struct note *next;
    char *name, *value;
} *seen;

/* Writes a line of the ledger, if there is to be one: at once, and whole. */
__attribute__((format(printf, 1, 2))) static void note(const char *form, ...) {
    if (!number_in_ledger) return;
    char *what;
    va_list values;
    va_start(values, form);
    if (vasprintf(&what, form, values) < 0) abort();
    va_end(values);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    unsigned long long nanoseconds = (unsigned long long)now.tv_sec * 1000000000 + (unsigned long long)now.tv_nsec;
    char *line = format("ledger %llu %s %u %ld %s .\n", nanoseconds, getenv("RUNTARA_INSTANCE_ID"), run, number_in_ledger, what);
    /* What cannot be kept is missed by whoever reads it, and by nobody else. */
    (void)!write(STDERR_FILENO, line, strlen(line));
    free(line);
    free(what);
}

static void begin_ledger(void) {
    uint32_t random;
    if (getentropy(&random, sizeof random) != 0) abort();
    number_in_ledger = (long)(random >> 2) + 1;
    note("begin");
}

/* Says that the instance has failed, and leaves, as programs with the published client do. */
__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *form, ...) {
    char *why, *whole;
    va_list values;
    va_start(values, form);
    if (vasprintf(&why, form, values) < 0) abort();
    va_end(values);
    whole = format("run %u: %s", run, why);
    fprintf(stderr, "%s\n", whole);
    failure error;
    text told = text_of(whole);
    if (!runtara_durable_outcome_fail(&told, &error)) fprintf(stderr, "could not report it either: %s\n", line_of(&error));
    exit(1);
}

/* Fails unless a call was done. */
static void done(bool is_done, const failure *error) {
    if (!is_done) fail("%s", line_of(error));
}

static void see(const char *name, char *value) {
    struct note *note = seen;
    while (note && strcmp(note->name, name) != 0) note = note->next;
    if (!note) {
        note = malloc(sizeof *note);
        if (!note) abort();
        *note = (struct note){seen, strdup(name), NULL};
        seen = note;
    }
    note->value = value;
}

static void wait_here(uint64_t milliseconds) {
    while (number_in_ledger && milliseconds > SIGN_OF_LIFE_MS) {
        struct timespec part = {0, SIGN_OF_LIFE_MS * 1000000};
        nanosleep(&part, NULL);
        milliseconds -= SIGN_OF_LIFE_MS;
        note("alive");
    }
    struct timespec time = {(time_t)(milliseconds / 1000), (long)(milliseconds % 1000 * 1000000)};
    nanosleep(&time, NULL);
    note("alive");
}

__attribute__((noreturn)) static void hang(void) {
    for (;;) wait_here(3600000);
}

static json member(json action, const char *name) {
    json found;
    if (!json_member(action, name, &found)) fail("'%s' is missing in %.*s", name, (int)action.length, action.start);
    return found;
}

static char *text_in(json value) {
    size_t length;
    return json_text_of(value, &length);
}

static uint64_t number(json value) {
    int64_t found;
    if (!json_whole(value, &found) || found < 0) fail("no number: %.*s", (int)value.length, value.start);
    return (uint64_t)found;
}

/* A number of an object, if it has one of that name. */
static bool has_number(json object, const char *name, uint64_t *found) {
    json value;
    if (!json_member(object, name, &value) || json_is(value, 'n')) return false;
    *found = number(value);
    return true;
}

static char *written(json value) {
    return format("%.*s", (int)value.length, value.start);
}

static bytes bytes_in(char *c) {
    return bytes_of(c);
}

/* What a payload gives: itself if it is JSON, else its text. */
static char *payload_value(const runtara_durable_signals_option_bytes_t *payload) {
    json value;
    const char *given = payload->is_some ? (const char *)payload->val.ptr : "";
    size_t length = payload->is_some ? payload->val.len : 0;
    return json_read(given, length, &value) ? written(value) : json_quoted(given, length);
}

/* Obeys the signal that waits for the instance, if one does. */
static void obey(bool waits, const runtara_durable_types_signal_t *signal) {
    failure error;
    if (!waits || signal->kind == RUNTARA_DURABLE_TYPES_SIGNAL_KIND_RESUME) return;
    done(runtara_durable_signals_acknowledge(signal->kind, &error), &error);
    exit(signal->kind == RUNTARA_DURABLE_TYPES_SIGNAL_KIND_PAUSE ? 0 : 1);
}

static void poll_once(void) {
    failure error;
    runtara_durable_signals_option_signal_t signal;
    done(runtara_durable_signals_poll(&signal, &error), &error);
    obey(signal.is_some, &signal.val);
}

static void leave_event(const char *subtype, char *payload) {
    failure error;
    text name = text_of(subtype);
    bytes given = bytes_in(payload);
    done(runtara_durable_report_event(&name, &given, &error), &error);
}

static void checkpoint(const char *name, char *value, uint64_t work_ms) {
    failure error;
    text id = text_of(name);
    runtara_durable_checkpoints_saved_t saved;
    done(runtara_durable_checkpoints_get(&id, &saved, &error), &error);
    obey(saved.signal.is_some, &saved.signal.val);
    bool was_saved = saved.found.is_some;
    if (!was_saved) {
        note("step %s", name);
        if (effects_event) {
            char *effect = format("%s %u", name, run);
            leave_event(effects_event, json_quoted(effect, strlen(effect)));
        }
        wait_here(work_ms);
        bytes state = bytes_in(value);
        done(runtara_durable_checkpoints_save(&id, &state, &saved, &error), &error);
        if (!saved.found.is_some) saved.found.val = state;
    }
    json kept;
    if (!json_read((const char *)saved.found.val.ptr, saved.found.val.len, &kept)) fail("checkpoint %s is no JSON", name);
    note("%s %s %.*s", was_saved ? "found" : "saved", name, (int)kept.length, kept.start);
    if (!was_saved) obey(saved.signal.is_some, &saved.signal.val);
    see(name, written(kept));
}

static void checkpoint_action(json step) {
    json value;
    uint64_t work_ms = 0;
    if (json_is(step, '"')) return checkpoint(text_in(step), format("%u", run), 0);
    has_number(step, "work_ms", &work_ms);
    bool has_value = json_member(step, "value", &value) && !json_is(value, 'n');
    checkpoint(text_in(member(step, "id")), has_value ? written(value) : format("%u", run), work_ms);
}

static void sleep_durably(const char *id, uint64_t milliseconds, const char *state) {
    failure error;
    runtara_durable_sleep_state_t save = {.name = text_of(id), .state = bytes_of(state)};
    done(runtara_durable_sleep_sleep(milliseconds, &save, &error), &error);
}

static void sleep_action(json sleep) {
    json state;
    bool has_state = json_member(sleep, "state", &state);
    sleep_durably(text_in(member(sleep, "id")), number(member(sleep, "ms")), has_state ? text_in(state) : "asleep");
}

/* Takes a custom signal, if it is there. */
static bool take(const char *name, char **value) {
    failure error;
    text id = text_of(name);
    runtara_durable_signals_option_option_bytes_t taken;
    done(runtara_durable_signals_take(&id, &taken, &error), &error);
    *value = taken.is_some ? payload_value(&taken.val) : strdup("null");
    return taken.is_some;
}

static void signal_action(const char *name) {
    char *value;
    while (!take(name, &value)) {
        poll_once();
        wait_here(POLL_MS);
    }
    see(name, value);
}

static void wait_action(json wait) {
    failure error;
    char *name = text_in(member(wait, "id"));
    text id = text_of(name);
    uint64_t milliseconds;
    bool has_limit = has_number(wait, "timeout_ms", &milliseconds);
    runtara_durable_signals_waited_t waited;
    done(runtara_durable_signals_wait(&id, has_limit ? &milliseconds : NULL, &waited, &error), &error);
    bool came = waited.tag == RUNTARA_DURABLE_SIGNALS_WAITED_CAME;
    see(name, came ? payload_value(&waited.val.came) : strdup("null"));
    poll_once();
}

static void retry_action(json retry) {
    failure error;
    text name = text_of(text_in(member(retry, "id"))), reason = text_of(text_in(member(retry, "error")));
    /* What comes of it is ignored, as by the published client. */
    (void)runtara_durable_report_retry(&name, (uint32_t)number(member(retry, "attempt")), &reason, &error);
}

static void progress_action(json progress) {
    json message = member(progress, "message"), percent = member(progress, "percent");
    leave_event("progress", format("{\"message\":%s,\"percent\":%s}", written(message), written(percent)));
}

static void event_action(json event) {
    json payload;
    bool has_payload = json_member(event, "payload", &payload);
    leave_event(text_in(member(event, "subtype")), has_payload ? written(payload) : strdup("null"));
}

__attribute__((noreturn)) static void complete(char *output) {
    failure error;
    bytes given = bytes_in(output);
    done(runtara_durable_outcome_complete(&given, &error), &error);
    note("end");
    exit(0);
}

static void act(const char *name, json value) {
    failure error;
    char *given;
    if (strcmp(name, "checkpoint") == 0) return checkpoint_action(value);
    if (strcmp(name, "sleep") == 0) return sleep_action(value);
    if (strcmp(name, "signal") == 0) return signal_action(text_in(value));
    if (strcmp(name, "take_signal") == 0) {
        char *id = text_in(value);
        take(id, &given);
        return see(id, given);
    }
    if (strcmp(name, "wait_signal") == 0) return wait_action(value);
    if (strcmp(name, "poll") == 0) return poll_once();
    if (strcmp(name, "await_order") == 0)
        for (;; wait_here(POLL_MS)) poll_once();
    if (strcmp(name, "event") == 0) return event_action(value);
    if (strcmp(name, "progress") == 0) return progress_action(value);
    if (strcmp(name, "heartbeat") == 0) return (void)runtara_durable_report_heartbeat(&error);
    if (strcmp(name, "retry") == 0) return retry_action(value);
    if (strcmp(name, "suspend") == 0) {
        done(runtara_durable_outcome_suspend(&error), &error);
        exit(0);
    }
    if (strcmp(name, "complete") == 0) complete(written(value));
    if (strcmp(name, "fail") == 0) {
        text reason = text_of(text_in(value));
        done(runtara_durable_outcome_fail(&reason, &error), &error);
        exit(1);
    }
    if (strcmp(name, "work") == 0) return wait_here(number(value));
    if (strcmp(name, "print") == 0) {
        puts(text_in(value));
        fflush(stdout);
        return;
    }
    if (strcmp(name, "print_error") == 0) return (void)fprintf(stderr, "%s\n", text_in(value));
    if (strcmp(name, "exit") == 0) exit((int)number(value));
    if (strcmp(name, "abort") == 0) __builtin_trap();
    if (strcmp(name, "hang") == 0) hang();
    fail("a guest cannot do '%s'", name);
}

static void play(json value);

/* An action many times, with {i} in any text of it replaced by 1, 2, … */
static void repeat(json action, uint64_t times) {
    for (uint64_t i = 1; i <= times; i++) {
        char *made = malloc(action.length * 8 + 1), *to = made;
        if (!made) abort();
        for (size_t n = 0; n < action.length; n++) {
            if (action.length - n >= 3 && memcmp(action.start + n, "{i}", 3) == 0) {
                to += sprintf(to, "%llu", (unsigned long long)i);
                n += 2;
            } else {
                *to++ = action.start[n];
            }
        }
        json once;
        if (!json_read(made, (size_t)(to - made), &once)) fail("no JSON any more: %.*s", (int)(to - made), made);
        play(once);
    }
}

/* Does an action, or those of a list, as far as they are for this run. */
static void play(json value) {
    const char *at = NULL;
    json item, action;
    uint64_t count;
    if (json_is(value, '[')) {
        while (json_next(value, &at, &item)) play(item);
        return;
    }
    if (has_number(value, "on_run", &count)) return count == run ? play(member(value, "do")) : (void)0;
    if (has_number(value, "from_run", &count)) return run >= count ? play(member(value, "do")) : (void)0;
    if (has_number(value, "repeat", &count)) return repeat(member(value, "do"), count);
    bool is_one = json_is(value, '{') && json_next(value, &at, &item) && json_next(value, &at, &action);
    if (!is_one || json_next(value, &at, &value)) fail("no action: %.*s", (int)value.length, value.start);
    act(text_in(item), action);
}

static void play_steps(json input, uint64_t steps) {
    uint64_t crash_at = 0, fail_at = 0, sleep_at = 0, step_ms = 0, sleep_ms = 1000;
    has_number(input, "crash_at", &crash_at);
    has_number(input, "fail_at", &fail_at);
    has_number(input, "sleep_at", &sleep_at);
    has_number(input, "step_ms", &step_ms);
    has_number(input, "sleep_ms", &sleep_ms);
    json signal;
    bool waits = json_member(input, "signal", &signal);
    for (uint64_t step = 1; step <= steps; step++) {
        if (step == crash_at && run == 1) __builtin_trap();
        if (step == fail_at) {
            char *why = format("failed before step %llu, as told", (unsigned long long)step);
            act("fail", (json){json_quoted(why, strlen(why)), strlen(why) + 2});
        }
        if (waits && step == steps) signal_action(text_in(signal));
        checkpoint(format("step-%llu", (unsigned long long)step), format("%llu", (unsigned long long)step), step_ms);
        if (step == sleep_at) sleep_durably("sleep", sleep_ms, "asleep");
    }
}

static char *output(void) {
    int64_t sum = 0, value;
    char *all = "";
    for (struct note *note = seen; note; note = note->next) {
        json noted = {note->value, strlen(note->value)};
        if (json_whole(noted, &value)) sum += value;
        all = format("%s%s%s:%s", all, *all ? "," : "", json_quoted(note->name, strlen(note->name)), note->value);
    }
    return format("{\"sum\":%lld,\"run\":%u,\"seen\":{%s}}", (long long)sum, run, all);
}

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    failure error;
    runtara_durable_instance_option_bytes_t given;
    json input, found;
    uint64_t steps;
    run = runtara_durable_instance_run_number();
    done(runtara_durable_instance_input(&given, &error), &error);
    if (!given.is_some || !json_read((const char *)given.val.ptr, given.val.len, &input)) fail("the input is no JSON");
    if (json_member(input, "effects_file", &found)) fail("a guest cannot note its effects in a file; use effects_event");
    if (json_member(input, "effects_event", &found)) effects_event = text_in(found);
    if (json_member(input, "ledger_on_stderr", &found) && json_is(found, 't')) begin_ledger();
    if (has_number(input, "steps", &steps)) play_steps(input, steps);
    else play(member(input, "actions"));
    complete(output());
}
