"""A follower's process: python -m preread.engine.group PIPE, started by `open_group`."""

import os
import sys
from multiprocessing.connection import Connection

from preread.engine.group.follower import follow

if __name__ == "__main__":
    follow(Connection(int(sys.argv[1])))
    os._exit(0)  # an orderly end would wait for ranks that are leaving, too
