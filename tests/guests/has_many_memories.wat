;; Has more memories in one module than guests are given.
(component
  (core module $program
    (memory 1) (memory 1) (memory 1) (memory 1) (memory 1) (memory 1) (memory 1) (memory 1)
    (func (export "run") (result i32) (i32.const 0)))
  (core instance $made (instantiate $program))
  (func $run (result (result)) (canon lift (core func $made "run")))
  (instance $command (export "run" (func $run)))
  (export "wasi:cli/run@0.2.0" (instance $command)))
