/* What all guests share: texts as of printf. */
#pragma once

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* A text of its own, as of printf. */
__attribute__((unused, format(printf, 1, 2))) static char *format(const char *form, ...) {
    char *made;
    va_list values;
    va_start(values, form);
    if (vasprintf(&made, form, values) < 0) abort();
    va_end(values);
    return made;
}
