"""Links between instances: frames, the handshake, credits and heartbeats, over UCX, TCP sockets or memory."""
