"""Other people's models behind the same Backend: raw HTTP, no client libraries of theirs.

A dialect knows how one API is asked, how it reuses prefixes and what its counts mean; everything
else (limits, retries, keys, warming, columns) is the same for all of them.
"""
