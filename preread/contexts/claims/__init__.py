"""Claims on work, by files of a home, on a Redis or in a bucket: wherever the catalog is."""
