;; Cannot begin with less than 2 GiB of memory.
(component
  (core module $program
    (memory 32768)
    (func (export "run") (result i32) (i32.const 0)))
  (core instance $made (instantiate $program))
  (func $run (result (result)) (canon lift (core func $made "run")))
  (instance $command (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $command)))
