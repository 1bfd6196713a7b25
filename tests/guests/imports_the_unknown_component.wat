;; Needs an interface that nobody offers.
(component
  (import "stranger:minds/reading@1.0.0" (instance
    (export "read" (func (result string))))))
