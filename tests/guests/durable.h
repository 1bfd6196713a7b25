/* What guests share that speak `runtara:durable`: the bindings, and texts as the bindings want them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format.h"
#include "imports.h"

typedef imports_string_t text;
typedef runtara_durable_types_bytes_t bytes;
typedef runtara_durable_types_error_t failure;

__attribute__((unused)) static text text_of(const char *c) {
    return (text){(uint8_t *)c, strlen(c)};
}

__attribute__((unused)) static bytes bytes_of(const char *c) {
    return (bytes){(uint8_t *)c, strlen(c)};
}

/* A text as JSON, with the escapes that messages of the host need. */
__attribute__((unused)) static char *json_text(const char *plain) {
    char *made = malloc(2 * strlen(plain) + 3), *to = made;
    if (!made) abort();
    *to++ = '"';
    for (; *plain; plain++) {
        if (*plain == '"' || *plain == '\\') *to++ = '\\';
        *to++ = *plain;
    }
    *to++ = '"';
    *to = '\0';
    return made;
}

/* A call that was not done, as one line: its kind and the text that the host gives. */
__attribute__((unused)) static char *line_of(const failure *error) {
    static const char *const kinds[] = {"refused", "superseded", "invalid", "unavailable"};
    const text *told = &error->val.refused;
    return format("%s: %.*s", kinds[error->tag], (int)told->len, (const char *)told->ptr);
}

/* Leaves with 1 and the reason, unless the call was done. */
__attribute__((unused)) static void must(bool done, const failure *error) {
    if (done) return;
    fprintf(stderr, "%s\n", line_of(error));
    exit(1);
}
