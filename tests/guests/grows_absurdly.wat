;; Wants one of its memories to have more bytes than a processor can count, which nobody can give, and then more memory than it may have, in
;; steps of 1 MiB, until it is refused and leaves well.
(component
  (core module $absurd
    (memory i64 1)
    (func (export "grow")
      (drop (memory.grow (i64.const 0xffffffffffff)))))
  (core module $program
    (import "absurd" "grow" (func $grow_absurdly))
    (memory i64 1)
    (func (export "run") (result i32)
      (call $grow_absurdly)
      (loop $again
        (br_if $again (i64.ne (memory.grow (i64.const 16)) (i64.const -1))))
      (i32.const 0)))
  (core instance $other (instantiate $absurd))
  (core instance $made (instantiate $program (with "absurd" (instance $other))))
  (func $run (result (result)) (canon lift (core func $made "run")))
  (instance $command (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $command)))
