;; Three parts, each with a memory of its own.
(component
  (core module $part
    (memory 1)
    (func (export "run") (result i32) (i32.const 0)))
  (core instance $one (instantiate $part))
  (core instance $two (instantiate $part))
  (core instance $three (instantiate $part))
  (func $run (result (result)) (canon lift (core func $three "run")))
  (instance $command (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $command)))
