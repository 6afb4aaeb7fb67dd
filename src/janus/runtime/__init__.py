"""What every service process is made of: loops, the cluster client, the engines, logs and metrics."""
