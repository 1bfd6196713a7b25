//! What every runner does, the instance protocol as domain calls, run files and the shim.
