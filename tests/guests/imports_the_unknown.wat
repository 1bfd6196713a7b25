;; Needs what nobody offers.
(module
  (import "no_such_host" "reads_minds" (func))
  (memory (export "memory") 1)
  (func (export "_start")))
