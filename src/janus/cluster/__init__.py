"""What starts, watches, stops and inspects the processes of a cluster on this machine."""
