//! Keeps durable workflow instances alive: the embeddable runtime.
