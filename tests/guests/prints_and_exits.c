/* Writes the texts `stdout` and `stderr` of its input where their names say, as they are, and completes. A guest whose input was read has
 * spoken, so that no code is an end of its own: `code` is refused. */
#include "durable.h"
#include "json.h"

static void print(json input, const char *name, FILE *to) {
    json given;
    size_t length;
    if (!json_member(input, name, &given)) return;
    char *made = json_text_of(given, &length);
    fwrite(made, 1, length, to);
    fflush(to);
}

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    failure error;
    runtara_durable_instance_option_bytes_t given;
    json input, code;
    must(runtara_durable_instance_input(&given, &error), &error);
    if (!given.is_some || !json_read((const char *)given.val.ptr, given.val.len, &input)) json_refuse("the input is no JSON");
    if (json_member(input, "code", &code)) json_refuse("a guest that speaks cannot leave with a code of its own");
    print(input, "stdout", stdout);
    print(input, "stderr", stderr);
    must(runtara_durable_outcome_complete(NULL, &error), &error);
    return 0;
}
