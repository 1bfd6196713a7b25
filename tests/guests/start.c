/* Where a component begins, in place of the start of the C library.
 *
 * A command whose start does not call its constructors is given, by the linker of LLVM, a wrapper around each of its exports that calls
 * constructors and destructors: also around `cabi_realloc`, through which the host hands over texts. With the start of older versions of
 * wasi-libc it so comes that a text of the host empties the buffers of standard output in the middle of a write, and that text is lost.
 */
#include <stdlib.h>

extern void __wasm_call_ctors(void);
extern int __main_void(void);

__attribute__((export_name("_start"))) void _start(void) {
    __wasm_call_ctors();
    exit(__main_void());
}
