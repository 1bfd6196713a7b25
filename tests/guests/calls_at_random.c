/* Makes calls of the host as if it had lost its mind: by the number that its argument names, which call comes next, with which pointers and
 * which lengths, is chosen at random, most of them within its memory and many not. It calls past the bindings, as the canonical ABI flattens
 * the calls, so that whatever can be said to the host is said. It completes in the end, unless it was ended before.
 *
 *   NUMBER   the seed
 *   CALLS    how many calls it makes
 *   LAST     `words` if last words are among the calls
 */
#include "durable.h"

#define HOST(interface, name) __attribute__((import_module("runtara:durable/" interface "@0.1.0"), import_name(name)))

HOST("instance", "id") extern void raw_id(uint32_t answer);
HOST("instance", "tenant-id") extern void raw_tenant_id(uint32_t answer);
HOST("instance", "input") extern void raw_input(uint32_t answer);
HOST("checkpoints", "get") extern void raw_get(uint32_t name, uint32_t length, uint32_t answer);
HOST("checkpoints", "save") extern void raw_save(uint32_t name, uint32_t length, uint32_t state, uint32_t size, uint32_t answer);
HOST("sleep", "sleep")
extern void raw_sleep(uint64_t time, uint32_t saves, uint32_t name, uint32_t length, uint32_t state, uint32_t size, uint32_t answer);
HOST("signals", "poll") extern void raw_poll(uint32_t answer);
HOST("signals", "acknowledge") extern void raw_acknowledge(uint32_t kind, uint32_t answer);
HOST("signals", "take") extern void raw_take(uint32_t id, uint32_t length, uint32_t answer);
HOST("signals", "wait") extern void raw_wait(uint32_t id, uint32_t length, uint32_t limited, uint64_t time, uint32_t answer);
HOST("report", "heartbeat") extern void raw_heartbeat(uint32_t answer);
HOST("report", "event")
extern void raw_event(uint32_t subtype, uint32_t length, uint32_t has_payload, uint32_t payload, uint32_t size, uint32_t answer);
HOST("report", "retry")
extern void raw_retry(uint32_t name, uint32_t length, uint32_t attempt, uint32_t has_error, uint32_t error, uint32_t size, uint32_t answer);
HOST("report", "log") extern void raw_log(uint32_t level, uint32_t message, uint32_t length);
HOST("outcome", "complete") extern void raw_complete(uint32_t has_output, uint32_t output, uint32_t size, uint32_t answer);
HOST("outcome", "fail") extern void raw_fail(uint32_t error, uint32_t length, uint32_t answer);
HOST("outcome", "suspend") extern void raw_suspend(uint32_t answer);

enum { ROOM = 1 << 16, ANSWER = 256, CALLS = 13, WORDS = 4 };

static uint64_t seed;
/* What calls read, and where most of them are answered. */
static uint8_t room[ROOM];
static uint64_t answer[ANSWER / sizeof(uint64_t)];

/* splitmix64 */
static uint64_t next(void) {
    uint64_t mixed = seed += 0x9e3779b97f4a7c15;
    mixed = (mixed ^ mixed >> 30) * 0xbf58476d1ce4e5b9;
    mixed = (mixed ^ mixed >> 27) * 0x94d049bb133111eb;
    return mixed ^ mixed >> 31;
}

static uint32_t below(uint32_t bound) {
    return (uint32_t)(next() % bound);
}

/* One time in so many. */
static bool seldom(uint32_t times) {
    return below(times) == 0;
}

static uint32_t address(const void *of) {
    return (uint32_t)(uintptr_t)of;
}

/* Where the host is to read: seldom anywhere at all. */
static uint32_t place(void) {
    return seldom(40) ? (uint32_t)next() : address(room) + below(ROOM / 2);
}

/* How much: mostly little, at times as much as there is, seldom any number. */
static uint32_t length(void) {
    if (seldom(40)) return (uint32_t)next();
    return seldom(10) ? below(ROOM / 2) : below(24);
}

/* Where the host is to write: seldom outside, or askew. */
static uint32_t answer_at(void) {
    return seldom(60) ? (uint32_t)next() : address(answer);
}

/* Of a choice of so many, seldom none of them. */
static uint32_t one_of(uint32_t count) {
    return seldom(60) ? (uint32_t)next() : below(count);
}

/* A time that is over soon, or that never is. */
static uint64_t some_time(void) {
    return seldom(20) ? next() : below(3);
}

/* Calls with names draw them from few letters, so that they meet what was saved before. */
static void fill(void) {
    for (uint32_t n = 0; n < ROOM; n++) room[n] = (uint8_t)("ab1"[below(3)]);
    for (uint32_t n = below(4); n > 0; n--) room[below(ROOM)] = (uint8_t)next();
}

static void call(uint32_t which) {
    switch (which) {
    case 0: return raw_id(answer_at());
    case 1: return raw_tenant_id(answer_at());
    case 2: return raw_input(answer_at());
    case 3: return raw_get(place(), length(), answer_at());
    case 4: return raw_save(place(), length(), place(), length(), answer_at());
    case 5: return raw_sleep(some_time(), one_of(2), place(), length(), place(), length(), answer_at());
    case 6: return raw_poll(answer_at());
    case 7: return raw_take(place(), length(), answer_at());
    case 8: return raw_wait(place(), length(), one_of(2) | !seldom(20), some_time(), answer_at());
    case 9: return raw_heartbeat(answer_at());
    case 10: return raw_event(place(), length(), one_of(2), place(), length(), answer_at());
    case 11: return raw_retry(place(), length(), (uint32_t)next(), one_of(2), place(), length(), answer_at());
    case 12: return raw_log(one_of(4), place(), length());
    case 13: return raw_acknowledge(one_of(3), answer_at());
    case 14: return raw_complete(one_of(2), place(), length(), answer_at());
    case 15: return raw_fail(place(), length(), answer_at());
    case 16: return raw_suspend(answer_at());
    }
}

int main(int argc, char **argv) {
    seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 0;
    uint32_t calls = argc > 2 ? (uint32_t)strtoul(argv[2], NULL, 10) : 1;
    bool has_words = argc > 3 && strcmp(argv[3], "words") == 0;
    while (calls-- > 0) {
        fill();
        call(below(has_words ? CALLS + WORDS : CALLS));
    }
    failure error;
    bytes output = bytes_of("\"came through\"");
    must(runtara_durable_outcome_complete(&output, &error), &error);
    return 0;
}
