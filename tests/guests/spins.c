/* Says that it is ready, and works for ever without a call: nothing but the host can end it. */
#include <stdio.h>

int main(void) {
    puts("ready");
    fflush(stdout);
    for (volatile unsigned n = 0;; n++) {
    }
}
