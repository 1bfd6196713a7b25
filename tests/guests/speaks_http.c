/* Follows a script: each of its arguments is a command. What it sees is a list of texts, with which it completes, or which it prints if
 * it never spoke to the server. It speaks HTTP, through wasi:http, as the published contract has it.
 *
 *   register                 begins to speak
 *   save NAME TEXT           saves a checkpoint, and sees what is saved by that name
 *   sleep MS NAME            sleeps durably
 *   poll                     sees the kind of the signal that waits, or `none`
 *   obey                     looks for a cancel or a pause until one is there, acknowledges it and leaves
 *   call METHOD PATH [BODY]  calls the server; `@` in the path is the own instance
 *   fetch METHOD URL [BODY]  calls anybody: sees the status and the body of the answer, or the name of the error
 *   patience MS URL          fetches, and waits so long for the first byte and between any two
 *   many N URL               fetches so often at once: sees how many were answered, and how many were not, by the name of the first error
 *   send MIB URL             sends so much, piece by piece, and sees the answer
 *   take URL                 sees the status, and how many bytes the body has
 *   header NAME VALUE        adds a header to every fetch after it
 *   pause MS                 waits without any call
 *   leave CODE               leaves without a word
 *   on N COMMAND             a command only in run N
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "format.h"
#include "requests.h"

typedef requests_string_t text;
typedef wasi_http_types_own_future_incoming_response_t future;

static const char *const errors[] = {
    "DNS-timeout", "DNS-error", "destination-not-found", "destination-unavailable", "destination-IP-prohibited",
    "destination-IP-unroutable", "connection-refused", "connection-terminated", "connection-timeout", "connection-read-timeout",
    "connection-write-timeout", "connection-limit-reached", "TLS-protocol-error", "TLS-certificate-error", "TLS-alert-received",
    "HTTP-request-denied", "HTTP-request-length-required", "HTTP-request-body-size", "HTTP-request-method-invalid",
    "HTTP-request-URI-invalid", "HTTP-request-URI-too-long", "HTTP-request-header-section-size", "HTTP-request-header-size",
    "HTTP-request-trailer-section-size", "HTTP-request-trailer-size", "HTTP-response-incomplete",
    "HTTP-response-header-section-size", "HTTP-response-header-size", "HTTP-response-body-size",
    "HTTP-response-trailer-section-size", "HTTP-response-trailer-size", "HTTP-response-transfer-coding",
    "HTTP-response-content-coding", "HTTP-response-timeout", "HTTP-upgrade-failed", "HTTP-protocol-error", "loop-detected",
    "configuration-error", "internal-error",
};

static char *seen;
static bool spoke;
static const char *header_name, *header_value;
/* How long is waited for an answer, in nanoseconds; 0 for as long as the host does. */
static uint64_t patience;

static void see(const char *plain) {
    char *made = malloc(6 * strlen(plain) + 3), *to = made;
    if (!made) abort();
    *to++ = '"';
    for (; *plain; plain++) {
        if (*plain == '"' || *plain == '\\') *to++ = '\\';
        if ((unsigned char)*plain < ' ') {
            to += sprintf(to, "\\u%04x", *plain);
        } else {
            *to++ = *plain;
        }
    }
    *to++ = '"';
    *to = '\0';
    seen = seen ? format("%s,%s", seen, made) : made;
}

static void give_up(const char *why) {
    fprintf(stderr, "%s\n", why);
    exit(1);
}

static const char *variable(const char *name) {
    const char *value = getenv(name);
    if (!value) give_up(format("there is no %s", name));
    return value;
}

static text text_of(const char *c) {
    return (text){(uint8_t *)c, strlen(c)};
}

/* Takes the next word from a command: an empty one at its end. */
static char *word(char **rest) {
    char *start = *rest, *end = start + strcspn(start, " ");
    *rest = *end ? end + 1 : end;
    *end = '\0';
    return start;
}

static void add(wasi_http_types_own_fields_t fields, const char *name, const char *value) {
    text key = text_of(name);
    wasi_http_types_field_value_t bytes = {(uint8_t *)value, strlen(value)};
    wasi_http_types_header_error_t error;
    if (!wasi_http_types_method_fields_append(wasi_http_types_borrow_fields(fields), &key, &bytes, &error)) give_up("a header is refused");
}

static wasi_http_types_method_t method_of(const char *name) {
    static const char *const methods[] = {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"};
    wasi_http_types_method_t method = {.tag = WASI_HTTP_TYPES_METHOD_OTHER, .val.other = text_of(name)};
    for (uint8_t n = 0; n < sizeof methods / sizeof *methods; n++)
        if (strcmp(name, methods[n]) == 0) method.tag = n;
    return method;
}

/* Writes a body and ends it. A server that has answered already need not take all of it. */
static void write_body(wasi_http_types_own_outgoing_body_t body, const uint8_t *bytes, size_t length, size_t times) {
    wasi_io_streams_own_output_stream_t stream;
    wasi_io_streams_stream_error_t broken;
    wasi_http_types_error_code_t error;
    if (!wasi_http_types_method_outgoing_body_write(wasi_http_types_borrow_outgoing_body(body), &stream)) give_up("no stream");
    bool goes = true;
    for (size_t n = 0; goes && n < times; n++) {
        for (size_t done = 0; goes && done < length;) {
            /* No more than this may be written at once. */
            size_t piece = length - done < 4096 ? length - done : 4096;
            requests_list_u8_t contents = {(uint8_t *)bytes + done, piece};
            goes = wasi_io_streams_method_output_stream_blocking_write_and_flush(
                wasi_io_streams_borrow_output_stream(stream), &contents, &broken);
            done += piece;
        }
    }
    wasi_io_streams_output_stream_drop_own(stream);
    wasi_http_types_static_outgoing_body_finish(body, NULL, &error);
}

/* Begins a request; false if it is refused at once, and then sees why. */
static bool begin(const char *method, const char *url, const char *json, size_t mebibytes, future *answer, const char **why) {
    wasi_http_types_own_fields_t fields = wasi_http_types_constructor_fields();
    if (json) add(fields, "content-type", "application/json");
    if (header_name) add(fields, header_name, header_value);
    wasi_http_types_own_outgoing_request_t request = wasi_http_types_constructor_outgoing_request(fields);
    wasi_http_types_borrow_outgoing_request_t borrowed = wasi_http_types_borrow_outgoing_request(request);
    wasi_http_types_method_t kind = method_of(method);
    wasi_http_types_scheme_t scheme = {.tag = WASI_HTTP_TYPES_SCHEME_HTTP};
    if (strncmp(url, "https:", 6) == 0) scheme.tag = WASI_HTTP_TYPES_SCHEME_HTTPS;
    const char *authority = strstr(url, "://");
    if (!authority) give_up(format("no URL: %s", url));
    authority += 3;
    size_t length = strcspn(authority, "/");
    text host = {(uint8_t *)authority, length}, path = text_of(authority[length] ? authority + length : "/");
    if (!wasi_http_types_method_outgoing_request_set_method(borrowed, &kind)) give_up("no such method");
    if (!wasi_http_types_method_outgoing_request_set_scheme(borrowed, &scheme)) give_up("no such scheme");
    if (!wasi_http_types_method_outgoing_request_set_authority(borrowed, &host)) give_up("no such authority");
    if (!wasi_http_types_method_outgoing_request_set_path_with_query(borrowed, &path)) give_up("no such path");
    wasi_http_types_own_outgoing_body_t body;
    bool has_body = json || mebibytes;
    if (has_body && !wasi_http_types_method_outgoing_request_body(borrowed, &body)) give_up("no body");
    wasi_http_types_own_request_options_t options = wasi_http_types_constructor_request_options();
    if (patience) {
        wasi_http_types_borrow_request_options_t limits = wasi_http_types_borrow_request_options(options);
        wasi_http_types_method_request_options_set_first_byte_timeout(limits, &patience);
        wasi_http_types_method_request_options_set_between_bytes_timeout(limits, &patience);
    }
    wasi_http_types_error_code_t error;
    if (!wasi_http_outgoing_handler_handle(request, &options, answer, &error)) {
        if (has_body) wasi_http_types_outgoing_body_drop_own(body);
        *why = errors[error.tag];
        return false;
    }
    static uint8_t piece[1 << 20];
    if (mebibytes) memset(piece, 'x', sizeof piece);
    if (mebibytes) write_body(body, piece, sizeof piece, mebibytes);
    else if (has_body) write_body(body, (const uint8_t *)json, strlen(json), 1);
    return true;
}

/* Waits for an answer; false if there is none, and then says why. */
static bool answered(future answer, wasi_http_types_own_incoming_response_t *response, const char **why) {
    wasi_http_types_borrow_future_incoming_response_t borrowed = wasi_http_types_borrow_future_incoming_response(answer);
    wasi_http_types_own_pollable_t pollable = wasi_http_types_method_future_incoming_response_subscribe(borrowed);
    wasi_io_poll_method_pollable_block(wasi_io_poll_borrow_pollable(pollable));
    wasi_io_poll_pollable_drop_own(pollable);
    wasi_http_types_result_result_own_incoming_response_error_code_void_t got;
    if (!wasi_http_types_method_future_incoming_response_get(borrowed, &got) || got.is_err) give_up("no answer although it is ready");
    wasi_http_types_future_incoming_response_drop_own(answer);
    if (got.val.ok.is_err) {
        *why = errors[got.val.ok.val.err.tag];
        return false;
    }
    *response = got.val.ok.val.ok;
    return true;
}

/* Reads a body to its end, and gives its length. Only the first 64 KiB are kept. If it breaks off, says why. */
static size_t read_body(wasi_http_types_own_incoming_response_t response, char **kept, const char **why) {
    wasi_http_types_own_incoming_body_t body;
    wasi_http_types_own_input_stream_t stream;
    if (!wasi_http_types_method_incoming_response_consume(wasi_http_types_borrow_incoming_response(response), &body)) give_up("no body");
    if (!wasi_http_types_method_incoming_body_stream(wasi_http_types_borrow_incoming_body(body), &stream)) give_up("no stream");
    char *text = calloc(1, 65537);
    size_t length = 0;
    for (;;) {
        requests_list_u8_t part;
        wasi_io_streams_stream_error_t error;
        if (!wasi_io_streams_method_input_stream_blocking_read(wasi_io_streams_borrow_input_stream(stream), 65536, &part, &error)) {
            if (error.tag == WASI_IO_STREAMS_STREAM_ERROR_CLOSED) break;
            requests_string_t told;
            wasi_io_error_method_error_to_debug_string(wasi_io_error_borrow_error(error.val.last_operation_failed), &told);
            char *line = format("%.*s", (int)told.len, (const char *)told.ptr);
            line[strcspn(line, "\n")] = '\0';
            *why = format("broken: %s", line);
            break;
        }
        for (size_t n = 0; n < part.len && length + n < 65536; n++) text[length + n] = (char)part.ptr[n];
        length += part.len;
        free(part.ptr);
    }
    *kept = text;
    wasi_io_streams_input_stream_drop_own(stream);
    wasi_http_types_incoming_body_drop_own(body);
    wasi_http_types_incoming_response_drop_own(response);
    return length;
}

/* The answer to a request: its status and what its body has, or nothing, and why. */
static int fetch(const char *method, const char *url, const char *json, size_t mebibytes, char **body, size_t *length, const char **why) {
    future answer;
    wasi_http_types_own_incoming_response_t response;
    *why = NULL;
    if (!begin(method, url, json, mebibytes, &answer, why) || !answered(answer, &response, why)) return 0;
    int status = wasi_http_types_method_incoming_response_status(wasi_http_types_borrow_incoming_response(response));
    *length = read_body(response, body, why);
    return status;
}

static void see_fetched(const char *method, const char *url, const char *json, size_t mebibytes) {
    char *body;
    size_t length;
    const char *why;
    int status = fetch(method, url, json, mebibytes, &body, &length, &why);
    see(why ? why : format("%d %s", status, body));
}

static char *at_core(const char *path) {
    char *own = format("%s%s", variable("RUNTARA_HTTP_URL"), path), *at = strchr(own, '@');
    if (!at) return own;
    *at = '\0';
    return format("%s%s%s", own, variable("RUNTARA_INSTANCE_ID"), at + 1);
}

/* A call of the instance protocol, which must be answered with 200. */
static char *must_call(const char *method, const char *path, const char *json) {
    char *body;
    size_t length;
    const char *why;
    int status = fetch(method, at_core(format("/api/v1/instances/@/%s", path)), json, 0, &body, &length, &why);
    if (why) give_up(format("%s: %s", path, why));
    if (status != 200) give_up(format("%s: %d %s", path, status, body));
    spoke = true;
    return body;
}

static char *base64(const char *plain) {
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    size_t length = strlen(plain);
    char *made = malloc(length * 2 + 8), *to = made;
    for (size_t n = 0; n < length; n += 3) {
        unsigned left = (unsigned)(length - n), bits = (unsigned)(unsigned char)plain[n] << 16;
        if (left > 1) bits |= (unsigned)(unsigned char)plain[n + 1] << 8;
        if (left > 2) bits |= (unsigned char)plain[n + 2];
        *to++ = letters[bits >> 18];
        *to++ = letters[bits >> 12 & 63];
        *to++ = left > 1 ? letters[bits >> 6 & 63] : '=';
        *to++ = left > 2 ? letters[bits & 63] : '=';
    }
    *to = '\0';
    return made;
}

/* A text member of an answer, as it stands there. */
static char *member(const char *json, const char *name) {
    char *found = strstr(json, format("\"%s\":\"", name));
    if (!found) return NULL;
    found += strlen(name) + 4;
    return format("%.*s", (int)strcspn(found, "\""), found);
}

static void save(char *rest) {
    char *name = word(&rest), *state = base64(rest);
    char *answer = must_call("POST", "checkpoint", format("{\"checkpoint_id\":\"%s\",\"state\":\"%s\"}", name, state));
    char *found = member(answer, "state");
    see(format("%s %s", name, found ? found : state));
}

static void sleep_durably(char *rest) {
    char *milliseconds = word(&rest);
    must_call("POST", "sleep",
              format("{\"duration_ms\":%s,\"checkpoint_id\":\"%s\",\"state\":\"%s\"}", milliseconds, rest, base64("slept")));
}

static void wait_here(long milliseconds) {
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static void obey(void) {
    for (;;) {
        char *kind = member(must_call("GET", "signals", NULL), "signal_type");
        if (kind && strcmp(kind, "resume") != 0) {
            must_call("POST", "signals/ack", format("{\"signal_type\":\"%s\",\"acknowledged\":true}", kind));
            exit(0);
        }
        wait_here(20);
    }
}

static void many(char *rest) {
    int wanted = atoi(word(&rest)), fine = 0, refused = 0;
    future *answers = calloc((size_t)wanted, sizeof *answers);
    const char *first = "none", *why;
    int begun = 0;
    for (int n = 0; n < wanted; n++) {
        if (begin("GET", rest, NULL, 0, &answers[begun], &why)) begun++;
        else if (!refused++) first = why;
    }
    for (int n = 0; n < begun; n++) {
        wasi_http_types_own_incoming_response_t response;
        if (answered(answers[n], &response, &why)) {
            fine++;
            wasi_http_types_incoming_response_drop_own(response);
        } else if (!refused++) first = why;
    }
    see(format("%d answered, %d %s", fine, refused, first));
}

static void take(const char *url) {
    char *body;
    size_t length = 0;
    const char *why;
    int status = fetch("GET", url, NULL, 0, &body, &length, &why);
    see(format("%d %zu%s%s", status, length, why ? " " : "", why ? why : ""));
}

static void command(char *line) {
    char *name = word(&line);
    if (strcmp(name, "register") == 0) {
        must_call("POST", "register", format("{\"tenant_id\":\"%s\"}", variable("RUNTARA_TENANT_ID")));
    } else if (strcmp(name, "save") == 0) {
        save(line);
    } else if (strcmp(name, "sleep") == 0) {
        sleep_durably(line);
    } else if (strcmp(name, "poll") == 0) {
        char *kind = member(must_call("GET", "signals", NULL), "signal_type");
        see(kind ? kind : "none");
    } else if (strcmp(name, "obey") == 0) {
        obey();
    } else if (strcmp(name, "call") == 0) {
        char *method = word(&line), *path = word(&line);
        see_fetched(method, at_core(path), *line ? line : NULL, 0);
    } else if (strcmp(name, "fetch") == 0) {
        char *method = word(&line), *url = word(&line);
        see_fetched(method, url, *line ? line : NULL, 0);
    } else if (strcmp(name, "patience") == 0) {
        patience = strtoull(word(&line), NULL, 10) * 1000000;
        see_fetched("GET", line, NULL, 0);
    } else if (strcmp(name, "many") == 0) {
        many(line);
    } else if (strcmp(name, "send") == 0) {
        size_t mebibytes = strtoul(word(&line), NULL, 10);
        see_fetched("POST", line, NULL, mebibytes);
    } else if (strcmp(name, "take") == 0) {
        take(line);
    } else if (strcmp(name, "header") == 0) {
        header_name = word(&line);
        header_value = line;
    } else if (strcmp(name, "pause") == 0) {
        wait_here(atol(line));
    } else if (strcmp(name, "leave") == 0) {
        exit(atoi(line));
    } else if (strcmp(name, "on") == 0) {
        if (strcmp(word(&line), variable("RUNTARA_RUN_NUMBER")) == 0) command(line);
    } else {
        give_up(format("no such command: %s", name));
    }
}

int main(int argc, char **argv) {
    for (int n = 1; n < argc; n++) command(strdup(argv[n]));
    char *all = format("{\"run\":%s,\"seen\":[%s]}", variable("RUNTARA_RUN_NUMBER"), seen ? seen : "");
    if (spoke) must_call("POST", "completed", format("{\"output\":\"%s\"}", base64(all)));
    else puts(all);
    return 0;
}
