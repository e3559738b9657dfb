"""The decisions and the ways in: the command line, and (later) the queue, the server and the SDK."""
