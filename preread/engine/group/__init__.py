"""One engine over several devices of a host: rank 0 schedules and samples, the others follow."""
