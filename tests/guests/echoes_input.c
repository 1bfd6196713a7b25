/* Completes with its input as output. */
#include "durable.h"

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    failure error;
    runtara_durable_instance_option_bytes_t input;
    must(runtara_durable_instance_input(&input, &error), &error);
    must(runtara_durable_outcome_complete(input.is_some ? &input.val : NULL, &error), &error);
    return 0;
}
