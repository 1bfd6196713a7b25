//! Small real programs with one behaviour each, for the black-box suites.
