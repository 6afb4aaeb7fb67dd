"""Where the time of one decode step goes, without any service around the model."""
