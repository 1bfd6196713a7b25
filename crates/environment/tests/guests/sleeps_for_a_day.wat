;; Saves `before`, sleeps for a day, saves `after`, and completes. It is a command of preview 1 that imports the durable operations as the
;; canonical ABI flattens them; whoever builds it adds the interfaces.
(module
  (import "runtara:durable/checkpoints@0.1.0" "save" (func $save (param i32 i32 i32 i32 i32)))
  (import "runtara:durable/sleep@0.1.0" "sleep" (func $sleep (param i64 i32 i32 i32 i32 i32 i32)))
  (import "runtara:durable/outcome@0.1.0" "complete" (func $complete (param i32 i32 i32 i32)))
  (memory (export "memory") 8)
  (data (i32.const 16) "before")
  (data (i32.const 32) "after")
  (data (i32.const 48) "\"state\"")
  (data (i32.const 64) "\"a day later\"")
  ;; What the host hands over lies behind all else, and is never given back; the adapter takes room there for itself, too.
  (global $free (mut i32) (i32.const 65536))
  (func (export "cabi_realloc") (param $old i32) (param $old_size i32) (param $align i32) (param $size i32) (result i32)
    (local $place i32)
    (local.set $place (i32.and (i32.add (global.get $free) (i32.const 15)) (i32.const -16)))
    (global.set $free (i32.add (local.get $place) (local.get $size)))
    (local.get $place))
  ;; Every answer lies at 1024, and begins with 1 if the call was not done.
  (func $must
    (if (i32.load8_u (i32.const 1024)) (then unreachable)))
  (func (export "_start")
    (call $save (i32.const 16) (i32.const 6) (i32.const 48) (i32.const 7) (i32.const 1024))
    (call $must)
    (call $sleep (i64.const 86400000) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 0) (i32.const 1024))
    (call $must)
    (call $save (i32.const 32) (i32.const 5) (i32.const 48) (i32.const 7) (i32.const 1024))
    (call $must)
    (call $complete (i32.const 1) (i32.const 64) (i32.const 13) (i32.const 1024))
    (call $must)))
