/* Reads JSON where it stands: a value is the piece of text that it is written as. Whatever breaks the rules of JSON ends the program with
 * 2, as do values that are not of the kind that is asked for: guests are told what to do by tests, and a test must not be misread. */
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A value, without the space around it. */
typedef struct {
    const char *start;
    size_t length;
} json;

enum { JSON_DEPTH = 64 };

__attribute__((noreturn, format(printf, 1, 2))) static void json_refuse(const char *form, ...) {
    va_list values;
    va_start(values, form);
    vfprintf(stderr, form, values);
    va_end(values);
    fputc('\n', stderr);
    exit(2);
}

static const char *json_space(const char *at, const char *end) {
    while (at < end && (*at == ' ' || *at == '\t' || *at == '\n' || *at == '\r')) at++;
    return at;
}

static bool json_is_digit(const char *at, const char *end) {
    return at < end && *at >= '0' && *at <= '9';
}

static const char *json_after_digits(const char *at, const char *end) {
    if (!json_is_digit(at, end)) return NULL;
    while (json_is_digit(at, end)) at++;
    return at;
}

static const char *json_after_number(const char *at, const char *end) {
    if (at < end && *at == '-') at++;
    bool is_zero = at < end && *at == '0';
    const char *whole = json_after_digits(at, end);
    if (!whole || (is_zero && whole != at + 1)) return NULL;
    at = whole;
    if (at < end && *at == '.' && !(at = json_after_digits(at + 1, end))) return NULL;
    if (at < end && (*at == 'e' || *at == 'E')) {
        at++;
        if (at < end && (*at == '+' || *at == '-')) at++;
        at = json_after_digits(at, end);
    }
    return at;
}

static int json_hex(char digit) {
    if (digit >= '0' && digit <= '9') return digit - '0';
    if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
    if (digit >= 'A' && digit <= 'F') return digit - 'A' + 10;
    return -1;
}

/* The number that four hexadecimal digits are, or -1. */
static int32_t json_unit(const char *at, const char *end) {
    if (end - at < 4) return -1;
    int32_t unit = 0;
    for (int n = 0; n < 4; n++) {
        int digit = json_hex(at[n]);
        if (digit < 0) return -1;
        unit = unit * 16 + digit;
    }
    return unit;
}

static const char *json_after_text(const char *at, const char *end) {
    for (at++; at < end && *at != '"'; at++) {
        if ((unsigned char)*at < 0x20) return NULL;
        if (*at != '\\') continue;
        if (++at >= end) return NULL;
        if (*at == 'u') {
            if (json_unit(at + 1, end) < 0) return NULL;
            at += 4;
        } else if (!memchr("\"\\/bfnrt", *at, 8)) {
            return NULL;
        }
    }
    return at < end ? at + 1 : NULL;
}

static const char *json_after_word(const char *at, const char *end, const char *word) {
    size_t length = strlen(word);
    return (size_t)(end - at) >= length && memcmp(at, word, length) == 0 ? at + length : NULL;
}

/* The end of the value that begins here, or NULL if none does. */
static const char *json_after_value(const char *at, const char *end, int depth) {
    if (at >= end || depth > JSON_DEPTH) return NULL;
    switch (*at) {
    case '"': return json_after_text(at, end);
    case 't': return json_after_word(at, end, "true");
    case 'f': return json_after_word(at, end, "false");
    case 'n': return json_after_word(at, end, "null");
    case '[':
    case '{': break;
    default: return json_after_number(at, end);
    }
    bool is_object = *at == '{';
    char closing = is_object ? '}' : ']';
    at = json_space(at + 1, end);
    if (at < end && *at == closing) return at + 1;
    for (;;) {
        if (is_object) {
            if (at >= end || *at != '"' || !(at = json_after_text(at, end))) return NULL;
            at = json_space(at, end);
            if (at >= end || *at != ':') return NULL;
            at = json_space(at + 1, end);
        }
        if (!(at = json_after_value(at, end, depth + 1))) return NULL;
        at = json_space(at, end);
        if (at >= end) return NULL;
        if (*at == closing) return at + 1;
        if (*at != ',') return NULL;
        at = json_space(at + 1, end);
    }
}

/* Whether bytes are one value. */
static bool json_read(const char *bytes, size_t length, json *value) {
    const char *end = bytes + length, *start = json_space(bytes, end), *after = json_after_value(start, end, 0);
    if (!after || json_space(after, end) != end) return false;
    *value = (json){start, (size_t)(after - start)};
    return true;
}

__attribute__((unused)) static bool json_is(json value, char first) {
    return value.length > 0 && *value.start == first;
}

/* The next item of a list, or the next name or value of an object; `at` is NULL before the first. */
static bool json_next(json whole, const char **at, json *item) {
    const char *end = whole.start + whole.length - 1;
    const char *next = json_space(*at ? *at : whole.start + 1, end);
    if (*at && next < end && (*next == ',' || *next == ':')) next = json_space(next + 1, end);
    if (next >= end) return false;
    *at = json_after_value(next, end, 0);
    if (!*at) json_refuse("no JSON: %.*s", (int)whole.length, whole.start);
    *item = (json){next, (size_t)(*at - next)};
    return true;
}

static void json_utf8(uint32_t point, char **to) {
    if (point < 0x80) {
        *(*to)++ = (char)point;
        return;
    }
    int more = point < 0x800 ? 1 : point < 0x10000 ? 2 : 3;
    static const unsigned char first[] = {0, 0xc0, 0xe0, 0xf0};
    *(*to)++ = (char)(first[more] | point >> (6 * more));
    while (more--) *(*to)++ = (char)(0x80 | (point >> (6 * more) & 0x3f));
}

/* The text that a value is, with its length, and a NUL behind it. */
static char *json_text_of(json value, size_t *length) {
    if (!json_is(value, '"')) json_refuse("no text: %.*s", (int)value.length, value.start);
    const char *at = value.start + 1, *end = value.start + value.length - 1;
    char *made = malloc(value.length + 1), *to = made;
    if (!made) abort();
    while (at < end) {
        if (*at != '\\') {
            *to++ = *at++;
            continue;
        }
        static const char from[] = "\"\\/bfnrt", plain[] = "\"\\/\b\f\n\r\t";
        if (at[1] != 'u') {
            *to++ = plain[strchr(from, at[1]) - from];
            at += 2;
            continue;
        }
        uint32_t point = (uint32_t)json_unit(at + 2, end);
        at += 6;
        bool is_first = point >= 0xd800 && point < 0xdc00, has_second = is_first && end - at >= 6 && at[0] == '\\' && at[1] == 'u';
        int32_t second = has_second ? json_unit(at + 2, end) : -1;
        if (second >= 0xdc00 && second < 0xe000) {
            point = 0x10000 + ((point - 0xd800) << 10) + ((uint32_t)second - 0xdc00);
            at += 6;
        } else if (point >= 0xd800 && point < 0xe000) {
            json_refuse("half a surrogate pair: %.*s", (int)value.length, value.start);
        }
        json_utf8(point, &to);
    }
    *to = '\0';
    *length = (size_t)(to - made);
    return made;
}

/* The value of a name in an object. What is no object has no names. */
__attribute__((unused)) static bool json_member(json object, const char *name, json *value) {
    const char *at = NULL;
    json key;
    if (!json_is(object, '{')) return false;
    while (json_next(object, &at, &key) && json_next(object, &at, value)) {
        size_t length;
        char *found = json_text_of(key, &length);
        bool is_it = length == strlen(name) && memcmp(found, name, length) == 0;
        free(found);
        if (is_it) return true;
    }
    return false;
}

/* Whether a value is a whole number, and which. */
__attribute__((unused)) static bool json_whole(json value, int64_t *number) {
    char digits[24];
    if (value.length == 0 || value.length >= sizeof digits || strcspn(value.start, "-0123456789") != 0) return false;
    memcpy(digits, value.start, value.length);
    digits[value.length] = '\0';
    char *end;
    *number = strtoll(digits, &end, 10);
    return *end == '\0';
}

/* Bytes as a JSON text. */
__attribute__((unused)) static char *json_quoted(const char *bytes, size_t length) {
    char *made = malloc(6 * length + 3), *to = made;
    if (!made) abort();
    *to++ = '"';
    for (size_t n = 0; n < length; n++) {
        unsigned char byte = (unsigned char)bytes[n];
        if (byte < 0x20) {
            to += sprintf(to, "\\u%04x", byte);
            continue;
        }
        if (byte == '"' || byte == '\\') *to++ = '\\';
        *to++ = (char)byte;
    }
    *to++ = '"';
    *to = '\0';
    return made;
}
